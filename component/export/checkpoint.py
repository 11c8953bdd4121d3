"""A BertCLIP checkpoint: an older folder or a Chinese-CLIP in today's layout, or a model with shorter vectors."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from transformers import CLIPProcessor

from component.checkpoint import load_checkpoint, read_ancestors, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.export.samples import embed_samples
from component.model import BertCLIPModel
from component.shorten import principal_axes, require_dims, shorten

_ENOUGH = 4096  # texts, and as many images: more do not move the axes


def write(
    model_path: str,
    folder: str,
    dim: int | None = None,
    texts: Sequence[str] = (),
    images: Sequence[str | Image.Image] = (),
) -> None:
    """Write the model as training does today, bit for bit; or in fp32, with the `dim` dimensions that hold the most.

    With `dim` the width of the model no cosine changes, and its vectors may then be cut at any length.

    Args:
        texts, images: with `dim`: by which the dimensions are found, such as those of the training data.

    Raises:
        ValueError: the model has fewer dimensions, or none of the images can be read; or the embeddings of the
            checkpoint are not those of the model, in these dimensions.
    """
    model, processor = load_checkpoint(model_path)
    width = model.config.projection_dim
    if dim is None:
        model.ancestors = read_ancestors(model_path)
        exported, axes = model, torch.eye(width)
    else:
        require_dims(model_path, width, dim)
        axes = _axes(model, processor, texts, images)[:dim]
        exported = copy.deepcopy(model).float()
        shorten(exported, axes)
    save_checkpoint(exported, processor, folder)
    samples = embed_samples(model.cpu().float(), processor)
    expected = {key: F.normalize(getattr(samples, key) @ axes.T, dim=-1) for key in ("text_embeds", "image_embeds")}
    again, processor = load_checkpoint(folder)
    replace(samples, **expected).require_same(embed_samples(again.cpu().float(), processor))


def _axes(
    model: BertCLIPModel, processor: CLIPProcessor, texts: Sequence[str], images: Sequence[str | Image.Image]
) -> Tensor:
    some = range(0, len(images), _step(images))
    image_embeds = embed_images(model, processor, Subset(images, some)).embeds
    if not len(image_embeds):
        raise ValueError("None of the images by which the dimensions are found can be read.")
    return principal_axes(embed_texts(model, processor, texts[:: _step(texts)]).embeds, image_embeds)


def _step(items: Sequence) -> int:
    """Every how many-th item to take, for at most `_ENOUGH` from all over the sequence."""
    return max(1, -(-len(items) // _ENOUGH))
