"""A BertCLIP folder → model and processor ready for inference, with errors that help."""

import torch
from transformers import CLIPProcessor

from component.hub.pretrained import BERT_CLIP, load_pretrained, quiet_transformers
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
