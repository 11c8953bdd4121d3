"""The towers of a loaded model, for queries and for the page."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers import CLIPProcessor

from component.embedding import embed_images, embed_texts
from component.model import BertCLIPModel


class ModelTowers:
    """Embeds the texts and images of queries."""

    def __init__(self, model: BertCLIPModel, processor: CLIPProcessor):
        self.model, self.processor = model, processor

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) fp32, L2-normalised."""
        return embed_texts(self.model, self.processor, texts).embeds.numpy()

    def embed_images(self, images: Sequence[str | Image.Image]) -> np.ndarray:
        """(n, D) fp32, L2-normalised. Raises ValueError if an image cannot be read."""
        embedded = embed_images(self.model, self.processor, images)
        for row, reason in embedded.bad_images.items():
            raise ValueError(f"{images[row] if isinstance(images[row], str) else 'The image'}: {reason}.")
        return embedded.embeds.numpy()
