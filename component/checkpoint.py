"""Checkpoints: load model and processor for inference, save them, and record which weights they were trained from."""

import copy
import json
import os

import torch
from transformers import CLIPProcessor

from component.ground.cores import limit_threads
from component.ground.files import write_json
from component.hub.identity import ModelIdentity, identity_of, weights_digest
from component.hub.kept_identity import file_states, keep_identity, read_identity
from component.hub.pretrained import find_file, find_pretrained, load_pretrained
from component.hub.quiet import quiet_transformers
from component.hub.sentence_transformers import write_sentence_transformers
from component.hub.use import BERT_CLIP
from component.model import BertCLIPModel
from component.processor import TextProcessor, load_processor_of, save_processor

ANCESTORS = "ancestors.json"  # next to the weights


def load_checkpoint(path: str) -> tuple[BertCLIPModel, CLIPProcessor]:
    """Load a BertCLIP or Chinese-CLIP folder (or hub name) in eval mode, on the GPU if there is one.

    Raises:
        ValueError: the folder does not exist, lacks weights or processor, is damaged, or holds another kind of model.
    """
    model, processor = load_text_checkpoint(path)
    if not model.config.has_image_half:
        raise ValueError(
            f"{path} is a text tower alone, trained for the vectors of images that another model made, and embeds no "
            "images. Export it with export_model.py --format sentence-transformers or onnx, or train it with "
            "clip_pretrain_path, the CLIP that made the vectors."
        )
    return model, processor


def load_text_checkpoint(path: str) -> tuple[BertCLIPModel, CLIPProcessor | TextProcessor]:
    """`load_checkpoint` for embedding texts only: the model may have no image half."""
    limit_threads()
    model = load_model(path)
    processor = load_processor_of(model.config, path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def load_model(path: str, dtype: torch.dtype | str = "auto") -> BertCLIPModel:
    """Load the model alone on the CPU, by default in the precision it was saved in. Raises as `load_checkpoint`."""
    model, _ = load_pretrained(BertCLIPModel, path, BERT_CLIP, dtype=dtype)
    return model.eval()


def load_weights(model: BertCLIPModel, path: str) -> None:
    """Load the weights of a folder into a model of the same settings.

    By `from_pretrained`, because transformers renames weights on the way from and to a file: `load_state_dict` of a
    file's content would leave parts of some towers as they are.
    """
    not_saved = {name: value for name, value in model.state_dict().items() if name in model._keys_to_ignore_on_save}
    model.load_state_dict({**load_model(path, model.dtype).state_dict(), **not_saved})


def load_identified(path: str) -> tuple[BertCLIPModel, CLIPProcessor, ModelIdentity]:
    """Like `load_checkpoint`, with the identity of the model.

    It is kept with the states of the files, because hashing the weights takes a second.
    """
    states = file_states(path)
    model, processor = load_checkpoint(path)
    # Else a file was replaced meanwhile, or downloaded, and no one knows which one was loaded.
    is_known = bool(states) and file_states(path) == states
    kept = read_identity(path, states) if is_known else None
    identity = identity_of(model, processor, kept and (kept.image.weights, kept.text.weights))
    if is_known and identity != kept:
        keep_identity(path, states, identity)
    return model, processor, identity


def save_checkpoint(model: BertCLIPModel, processor: CLIPProcessor, folder: str) -> None:
    """Write a folder that `load_checkpoint` and transformers load: weights, config, code, processor and ancestors."""
    with quiet_transformers():
        model.save_pretrained(folder)
    complete_checkpoint(model, processor, folder)


def complete_checkpoint(model: BertCLIPModel, processor: CLIPProcessor, folder: str) -> None:
    """Add to a folder with weights and config: processor, ancestors, and what sentence-transformers reads."""
    save_processor(processor, folder)
    if model.config.has_image_half:
        write_sentence_transformers(folder, output_name=None)
    if model.ancestors is not None:
        write_json(os.path.join(folder, ANCESTORS), model.ancestors)


def read_ancestors(path: str) -> list[str] | None:
    """Digests of the weights that those of a folder or hub name were trained from, the oldest first.

    The list is empty if a CLIP and a BERT were paired, and None if the folder has no record.

    Raises:
        ValueError: the file is damaged.
    """
    file = find_file(find_pretrained(path), ANCESTORS)
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as content:
            digests = json.load(content)
        if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
            raise ValueError("it is not a list of digests")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}). Fetch it again, or remove it.") from None
    return digests


def ancestor_digest(model: BertCLIPModel) -> str:
    """Digest of the weights as listed among the ancestors: the same for every precision that holds them exactly."""
    return weights_digest(model if model.dtype == torch.float32 else copy.deepcopy(model).float())
