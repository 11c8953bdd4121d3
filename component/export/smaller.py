"""A BertCLIP folder with fewer layers than another, or a narrower text tower: the start of a student."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from component.checkpoint import load_text_checkpoint, save_checkpoint
from component.export.folder import export_folder
from component.model import BertCLIPModel
from component.shorten import principal_axes
from component.tower_parts import tower_parts


def save_smaller(
    model_path: str,
    output: str,
    text_layers: Sequence[int] | None = None,
    image_layers: Sequence[int] | None = None,
    text_width: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint whose towers have only some layers of another one (as DistilBERT, arXiv:1910.01108, starts).

    Everything else is the same: embeddings, poolers, projections, logit_scale, processor; only a smaller text tower
    has no dropout, because it can learn less than its teacher gives it. The checkpoint computes something else, and is
    of use only after training, see `distill_from`.

    Args:
        model_path: BertCLIP or Chinese-CLIP folder, or hub name.
        output: new or empty folder; it appears complete or not at all.
        text_layers, image_layers: numbers of the layers that are kept, rising, from 0; None: all.
        text_width: hidden size of the text tower, for a model whose word embeddings alone are too large. They keep
            their principal axes; all layers of the tower and its projection are new.
        overwrite: allow a folder with files: files of the same name are replaced, others stay.

    Raises:
        ValueError: `model_path` is not a BertCLIP checkpoint, has no such layers, or is not wider; or `output` is not
            empty, or in use by another process.
    """
    with export_folder(model_path, output, overwrite) as folder:
        model, processor = load_text_checkpoint(model_path)
        if text_layers is not None:
            _keep(model.text_model, text_layers, "text")
        if text_layers is not None or text_width is not None:
            model.text_model.config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
        if image_layers is not None:
            if not model.config.has_image_half:
                raise ValueError(f"{model_path} is a text tower alone: it has no layers of an image tower.")
            _keep(model.vision_model, image_layers, "image")
        if text_width is not None:
            model = _narrowed(model.cpu(), text_width)
        save_checkpoint(model, processor, folder)


def _keep(tower: nn.Module, numbers: Sequence[int], name: str) -> None:
    blocks = tower_parts(tower).blocks
    if not numbers or sorted(set(numbers)) != list(numbers) or not 0 <= numbers[0] <= numbers[-1] < len(blocks):
        raise ValueError(
            f"layers {', '.join(map(str, numbers)) or 'none'} of the {name} tower: expected rising numbers from 0 to "
            f"{len(blocks) - 1}."
        )
    layers = tower.get_submodule(next(iter(blocks)).rpartition(".")[0])
    for number in sorted(set(range(len(blocks))) - {*numbers}, reverse=True):
        del layers[number]
    tower.config.num_hidden_layers = len(layers)
    if hasattr(tower.config, "stage_names"):  # DINO's configs also list their blocks, for use as backbones
        tower.config.stage_names = tower.config.stage_names[: len(layers) + 1]
        tower.config.out_features = None  # the last one


@torch.no_grad()
def _narrowed(model: BertCLIPModel, width: int) -> BertCLIPModel:
    config = copy.deepcopy(model.config)
    text = config.text_config
    if not 1 <= width < text.hidden_size:
        raise ValueError(f"a text tower of width {width}: expected 1 to {text.hidden_size - 1}.")
    text.num_attention_heads = max(n for n in range(1, text.num_attention_heads + 1) if width % n == 0)
    text.intermediate_size = text.intermediate_size * width // text.hidden_size
    text.hidden_size = width
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        narrowed = BertCLIPModel._from_config(config, dtype=model.dtype)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("text_")}
    narrowed.load_state_dict(kept, strict=False)
    axes = principal_axes(model.get_input_embeddings().weight.float())[:width]
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        before, after = (getattr(one.text_model.embeddings, name).weight for one in (model, narrowed))
        after.copy_(before.float() @ axes.T)
    return narrowed
