"""Shorter vectors: turn the shared space so that its first dimensions hold the most, then keep only these.

Turning both projections changes no cosine. With the principal axes of the embeddings as dimensions, the first d of
them are the best d for the embeddings as a whole (Eckart and Young, 1936), so vectors can be cut at any length without
training for it, as Matryoshka representations (arXiv:2205.13147) do.

Shapes: D projection width, d dimensions that are kept.
"""

import torch
from torch import Tensor, nn

from component.model import BertCLIPModel


def principal_axes(*embeds: Tensor) -> Tensor:
    """Embeddings (n, D) of texts and of images → (D, D), orthonormal rows, the one that holds the most first.

    >>> principal_axes(torch.tensor([[0.6, 0.8], [-0.6, -0.8]])).abs()
    tensor([[0.6000, 0.8000],
            [0.8000, 0.6000]])
    """
    together = torch.cat(embeds).double()
    axes = torch.linalg.eigh(together.T @ together).eigenvectors.flip(1).T
    return axes.float()


def require_dims(model_path: str, width: int, dim: int) -> None:
    """Raise ValueError unless vectors of `width` dimensions, those of a model, can be cut at `dim`."""
    if not 1 <= dim <= width:
        raise ValueError(f"{model_path} has vectors of {width} dimensions: give --dim 1 to {width}, not {dim}.")


@torch.no_grad()
def shorten(model: BertCLIPModel, axes: Tensor) -> None:
    """Project the embeddings of a model onto the first of its `principal_axes`, (d, D), by changing its projections.

    With d = D every cosine stays as it is. The config then says `ordered_dims`: that vectors may be cut at any length.
    """
    for projection in (model.text_projection, model.visual_projection):
        weight = projection.weight
        projection.weight = nn.Parameter((axes.to(weight).double() @ weight.double()).to(weight), weight.requires_grad)
        projection.out_features = len(axes)
    for config in (model.config, model.config.vision_config):
        if hasattr(config, "projection_dim"):  # of the image towers only CLIP's has it
            config.projection_dim = len(axes)
    model.config.ordered_dims = True
