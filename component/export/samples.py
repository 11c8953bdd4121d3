"""A few texts and images by which an export is compared with its model.

Shapes: n samples, D projection width.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_images, embed_texts
from component.model import BertCLIPModel

TEXTS = ("一只小狗在摇尾巴", "红色的圆", "A photo of 2 cats, 2024.", "", "山" * 600)
SIZES = ((224, 224), (90, 300), (64, 48))
TOLERANCE = 1e-5  # per component of a normalised embedding


@dataclass(frozen=True)
class Samples:
    """Inputs, and the model's embeddings of them.

    Attributes:
        texts: short ones, an empty one, and one that is truncated.
        images: RGB, of several shapes.
        text_embeds, image_embeds: (n, D) fp32, L2-normalised; no image of a text tower alone.
    """

    texts: list[str]
    images: list[Image.Image]
    text_embeds: Tensor
    image_embeds: Tensor | None

    def require_same(self, found) -> None:
        """Raise ValueError if `found`, other `Samples` or the output of a model, has other embeddings."""
        require_same("texts", self.text_embeds, found.text_embeds)
        if self.image_embeds is not None:
            require_same("images", self.image_embeds, found.image_embeds)


def require_same(kind: str, expected: Tensor, found: Tensor) -> None:
    """Raise ValueError if the embeddings of an export, (n, D) and L2-normalised, are not those of the model."""
    error = (found - expected).abs().max().item()
    if not error <= TOLERANCE:
        raise ValueError(
            f"The export's embeddings of {kind} differ from the model's by up to {error:.1e}; nothing was written. "
            "Please report this, with the config.json of the model."
        )


def embed_samples(model: BertCLIPModel, processor: CLIPProcessor) -> Samples:
    """Embed the samples with a model in fp32 on the CPU."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]
    text_embeds = embed_texts(model, processor, TEXTS).embeds
    image_embeds = embed_images(model, processor, images).embeds if model.config.has_image_half else None
    return Samples(list(TEXTS), images, text_embeds, image_embeds)
