"""The text tower alone in the layout of sentence-transformers: plain modules that every version of it loads.

BERT → hidden state of [CLS] → BERT's pooler as a dense layer (if the model has one) → text_projection → L2-normalised.
"""

import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel, BertTokenizerFast

from component.checkpoint import load_text_checkpoint
from component.embedding import embed_texts
from component.export import bert
from component.export.samples import TEXTS, require_same
from component.ground.files import write_json
from component.hub.pretrained import loading
from component.hub.sentence_transformers import write_modules

_PACKAGE = "sentence_transformers.models"  # the name in the files of all versions; newer ones know it
_ACTIVATIONS = {"tanh": "torch.nn.modules.activation.Tanh", "none": "torch.nn.modules.linear.Identity"}


def write(model_path: str, folder: str) -> None:
    """Write BERT, tokenizer, dense layers and modules.json, in fp32.

    Raises:
        ValueError: the embeddings of the files written differ from the model's.
    """
    model, processor = load_text_checkpoint(model_path)
    model = model.cpu().float()
    expected = embed_texts(model, processor, TEXTS).embeds
    bert.write_tower(model, processor.tokenizer, folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    dense = [(model.text_projection, "none")]
    if model.config.text_pooling == "pooler":
        dense.insert(0, (model.text_model.pooler.dense, "tanh"))
    for layer, activation in dense:
        name = f"{len(modules)}_Dense"
        _write_dense(os.path.join(folder, name), layer, activation)
        modules.append((name, "Dense"))
    write_modules(folder, _PACKAGE, modules)
    write_json(
        os.path.join(folder, "sentence_bert_config.json"),
        {
            "max_seq_length": processor.tokenizer.model_max_length,
            "do_lower_case": False,
            "model_args": {"add_pooling_layer": False},  # the pooler is a layer of its own here
        },
    )
    os.makedirs(os.path.join(folder, "1_Pooling"))
    width = model.config.text_config.hidden_size
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True}
    write_json(os.path.join(folder, "1_Pooling", "config.json"), pooling)
    require_same("texts", expected, _embed(folder, [name for name, kind in modules if kind == "Dense"]))


def _write_dense(folder: str, layer: nn.Linear, activation: str) -> None:
    os.makedirs(folder)
    config = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    write_json(os.path.join(folder, "config.json"), {**config, "activation_function": _ACTIVATIONS[activation]})
    weights = {f"linear.{name}": value.detach().contiguous() for name, value in layer.named_parameters()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


@torch.inference_mode()
def _embed(folder: str, dense: list[str]) -> Tensor:
    """What sentence-transformers computes from these files."""
    with loading(folder):
        tower = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        tokenizer = BertTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    embeds = tower(**inputs).last_hidden_state[:, 0]
    for name in dense:
        weights = load_file(os.path.join(folder, name, "model.safetensors"))
        embeds = F.linear(embeds, weights["linear.weight"], weights.get("linear.bias"))
        if "linear.bias" in weights:
            embeds = embeds.tanh()
    return F.normalize(embeds, dim=-1)
