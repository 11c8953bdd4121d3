"""A BertCLIP folder → model and processor ready for inference, with errors that help."""

import copy
import json
import os
from collections.abc import Sequence

import torch
from transformers import CLIPProcessor
from transformers.utils import cached_file

from component.ground.files import write_json
from component.ground.fingerprint import fingerprint
from component.hub.pretrained import BERT_CLIP, find_pretrained, load_pretrained, quiet_transformers
from component.model import BertCLIPModel
from component.processor import load_processor, require_fitting, save_processor


def load_checkpoint(path: str) -> tuple[BertCLIPModel, CLIPProcessor]:
    """Load a BertCLIP or Chinese-CLIP folder (or hub name) in eval mode, on the GPU where there is one.

    Raises:
        ValueError: no such folder, no weights, no processor, damaged files, or weights of another kind of model.
    """
    model = load_model(path)
    processor = load_processor(path, max_length=model.config.text_config.max_position_embeddings)
    require_fitting(processor, model.config, path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def load_model(path: str, dtype: torch.dtype | str = "auto") -> BertCLIPModel:
    """Load the model alone, on the CPU, by default in the precision that it was saved in. Raises like the other."""
    model, _ = load_pretrained(BertCLIPModel, path, BERT_CLIP, dtype=dtype)
    return model.eval()


def save_checkpoint(model: BertCLIPModel, processor: CLIPProcessor, folder: str) -> None:
    """Write what `load_checkpoint` loads, and everybody else too: weights, settings, code of the model, processor."""
    with quiet_transformers():
        model.save_pretrained(folder)
    save_processor(processor, folder)


ANCESTORS = "ancestors.json"  # beside the weights


def read_ancestors(path: str) -> list[str] | None:
    """Digests of the weights that those of a folder or hub name were trained from, the oldest first.

    An empty list is a CLIP and a BERT, paired anew; None: nobody wrote it down.

    Raises:
        ValueError: the file is damaged.
    """
    quietly = dict(_raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    file = cached_file(find_pretrained(path), ANCESTORS, **quietly)
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as content:
            digests = json.load(content)
        if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
            raise ValueError("no list of digests")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}): fetch it again, or remove it.") from None
    return digests


def write_ancestors(folder: str, digests: Sequence[str] | None) -> None:
    """Write them beside the weights; nothing where nobody knows them."""
    if digests is not None:
        write_json(os.path.join(folder, ANCESTORS), list(digests))


def digest_of(model: BertCLIPModel) -> str:
    """What the weights are called among the ancestors: the same in whatever precision they are loaded, and exactly."""
    return fingerprint(model if model.dtype == torch.float32 else copy.deepcopy(model).float())
