"""A few texts and images that an export is compared by with the model that it was made from.

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
TOLERANCE = 1e-5  # of each number of an embedding of length 1


@dataclass(frozen=True)
class Samples:
    """What goes in, and what the model makes of it.

    Attributes:
        texts: short ones, an empty one, and one that has to be cut.
        images: RGB, of several shapes.
        text_embeds, image_embeds: (n, D) fp32, L2-normalised.
    """

    texts: list[str]
    images: list[Image.Image]
    text_embeds: Tensor
    image_embeds: Tensor

    def require_same(self, text_embeds: Tensor, image_embeds: Tensor) -> None:
        """Raise ValueError where the export has other embeddings, (n, D) and normalised, than the model."""
        for kind, found, expected in (
            ("texts", text_embeds, self.text_embeds),
            ("images", image_embeds, self.image_embeds),
        ):
            error = (found - expected).abs().max().item()
            if not error <= TOLERANCE:
                raise ValueError(
                    f"The export embeds {kind} otherwise than the model, by up to {error:.1e}; nothing was written. "
                    "Please report it, with the config.json of the model."
                )


def embed_samples(model: BertCLIPModel, processor: CLIPProcessor) -> Samples:
    """Embed the samples in fp32, which the model is turned into."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]
    model.float()
    text_embeds = embed_texts(model, processor, TEXTS).embeds
    return Samples(list(TEXTS), images, text_embeds, embed_images(model, processor, images).embeds)
