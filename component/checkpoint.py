"""A BertCLIP folder → model and processor ready for inference, with errors that help."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import CLIPProcessor
from transformers.utils import logging as transformers_logging

from component.model import BertCLIPModel
from component.model_path import is_hub_name
from component.processor import load_processor

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_PROCESSOR = (("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.txt"))


def load_checkpoint(path: str) -> tuple[BertCLIPModel, CLIPProcessor]:
    """Load a BertCLIP folder (or hub name) in eval mode, on the GPU where there is one.

    Raises:
        ValueError: no such folder, no weights, no processor, damaged files, or weights of another kind of model.
    """
    model = load_model(path)
    with loading(path):
        processor = load_processor(path, max_length=model.config.text_config.max_position_embeddings)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def load_model(path: str) -> BertCLIPModel:
    """Load the model alone, on the CPU, in the precision that it was saved in. Raises like `load_checkpoint`."""
    _check_folder(path)
    with loading(path):
        model, info = BertCLIPModel.from_pretrained(path, output_loading_info=True)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{path} is not a BertCLIP checkpoint: {len(missing)} of its weights are missing "
            f"(the first: {missing[0]}). Give a folder that train_clip.py wrote, such as output/demo/checkpoint-final."
        )
    return model.eval()


@contextmanager
def loading(path: str) -> Iterator[None]:
    """Around a `from_pretrained`: any fault becomes one ValueError, and no progress bar is drawn."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # OSError, RuntimeError, SafetensorError, UnpicklingError, … each for a damaged file
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be loaded: {reason}") from error


def _check_folder(path: str) -> None:
    if is_hub_name(path):
        return
    if not os.path.isdir(path):
        raise ValueError(f"{path} is not a model folder (seen from {os.getcwd()}).")
    if not os.path.isfile(os.path.join(path, "config.json")):
        checkpoints = sorted(name for name in os.listdir(path) if name.startswith("checkpoint-"))
        hint = f" Did you mean {os.path.join(path, checkpoints[-1])}?" if checkpoints else ""
        raise ValueError(f"{path} is not a model folder: it has no config.json.{hint}")
    for names in (_WEIGHTS, *_PROCESSOR):
        if not any(os.path.isfile(os.path.join(path, name)) for name in names):
            raise ValueError(
                f"{path} has neither {' nor '.join(names)}. "
                "Give a complete checkpoint, as train_clip.py writes it (model, processor and tokenizer)."
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars, and without the table of missing weights: the caller says in one line what is wrong."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
