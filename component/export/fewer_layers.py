"""A BertCLIP folder with some of the layers of another: the start of a student."""

from collections.abc import Sequence

from torch import nn

from component.checkpoint import load_text_checkpoint, save_checkpoint
from component.export.folder import export_folder
from component.tower_parts import tower_parts


def save_fewer_layers(
    model_path: str,
    output: str,
    text_layers: Sequence[int] | None = None,
    image_layers: Sequence[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint whose towers have only these layers of another one (as DistilBERT, arXiv:1910.01108, starts).

    Everything else is the same: embeddings, poolers, projections, logit_scale, processor. It computes something else,
    and is of use only after training, see `distill_from`.

    Args:
        model_path: BertCLIP or Chinese-CLIP folder, or hub name.
        output: new or empty folder; it appears complete or not at all.
        text_layers, image_layers: numbers of the layers that are kept, rising, from 0; None: all.
        overwrite: allow a folder with files: files of the same name are replaced, others stay.

    Raises:
        ValueError: `model_path` is not a BertCLIP checkpoint, or has no such layers; or `output` is not empty, or in
            use by another process.
    """
    with export_folder(model_path, output, overwrite) as folder:
        model, processor = load_text_checkpoint(model_path)
        if text_layers is not None:
            _keep(model.text_model, text_layers, "text")
        if image_layers is not None:
            if not model.config.has_image_half:
                raise ValueError(f"{model_path} is a text tower alone: it has no layers of an image tower.")
            _keep(model.vision_model, image_layers, "image")
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
