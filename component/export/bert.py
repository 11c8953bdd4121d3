"""The text tower of a BertCLIP folder as a plain BERT folder."""

import logging

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from component.checkpoint import load_model
from component.export.samples import TEXTS
from component.hub.pretrained import loading
from component.hub.quiet import quiet_transformers
from component.hub.tokenizer import load_tokenizer, save_tokenizer
from component.model import BertCLIPModel

logger = logging.getLogger(__name__)


def write(model_path: str, folder: str) -> None:
    """Write a folder that plain `BertModel.from_pretrained` and `BertTokenizer.from_pretrained` load.

    The weights are the same bit for bit. A warning says how to load a BERT without a pooler ("cls" pooling).

    Raises:
        ValueError: as `write_tower`.
    """
    model = load_model(model_path)
    write_tower(model, load_tokenizer(model_path), folder)
    if model.config.text_pooling == "cls":
        logger.warning(
            "The BERT of %s has no pooler, like Chinese-CLIP's: load it with BertModel.from_pretrained(folder, "
            "add_pooling_layer=False), and use last_hidden_state[:, 0] for the text.",
            model_path,
        )


def write_tower(model: BertCLIPModel, tokenizer: BertTokenizerFast, folder: str) -> None:
    """Write the BERT of a model and its tokenizer, and compare it with the tower, which is of no use afterwards.

    Raises:
        ValueError: the BERT written computes other hidden states than the tower.
    """
    bert = model.text_model
    tokenizer.model_max_length = min(tokenizer.model_max_length, bert.config.max_position_embeddings)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = bert(**inputs).last_hidden_state
    config = bert.config.to_dict()
    pooling = config.pop("text_pooling")
    bert.config = BertConfig(**{**config, "model_type": "bert", "architectures": ["BertModel"]})
    with quiet_transformers():
        bert.save_pretrained(folder)
    tokenizer._set_processor_class(None)  # else AutoProcessor would look for the image processor of a CLIPProcessor
    tokenizer.init_kwargs.pop("processor_class", None)
    save_tokenizer(tokenizer, folder)
    with loading(folder):
        again = BertModel.from_pretrained(folder, dtype=bert.dtype, add_pooling_layer=pooling == "pooler").eval()
    with torch.inference_mode():
        found = again(**inputs).last_hidden_state
        # Sums depend on how the weights are aligned in memory, which is visible in half precision.
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True):
            raise ValueError("The BERT written computes other hidden states than the tower. Please report this.")
