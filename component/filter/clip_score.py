"""How well the caption and the image of a pair agree according to a BertCLIP checkpoint."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from component.checkpoint import load_checkpoint
from component.embedding import embed_texts, normalize
from component.image.transform import ImageTransform


class ClipScorer:
    """Cosine of caption and image (the CLIP-score filter of LAION, 2111.02114, and DataComp, 2304.14108).

    Args:
        path: checkpoint folder.
        batch_size: pairs per forward pass; runs on the GPU if there is one.
        on_scores: called with each array of scores.

    Attributes:
        crop: makes the images that the scorer takes.

    Raises:
        ValueError: the folder is not a BertCLIP checkpoint.
    """

    def __init__(self, path: str, batch_size: int = 64, on_scores: Callable[[np.ndarray], None] = lambda scores: None):
        self._model, self._processor = load_checkpoint(path)
        self._batch_size, self._on_scores = batch_size, on_scores
        self._transform = ImageTransform(self._processor.image_processor)
        self.crop = self._transform.centre_crop

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) cosines of n captions and images, each (H, W, 3) uint8 as `crop` returns it."""
        text_embeds = embed_texts(self._model, self._processor, texts, self._batch_size).embeds
        scores = (text_embeds * self._embed_images(images)).sum(dim=1).numpy()
        self._on_scores(scores)
        return scores

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        embeds = []
        for start in range(0, len(images), self._batch_size):
            pixel_values = self._transform.pixel_values(images[start : start + self._batch_size])
            features = self._model.get_image_features(pixel_values.to(self._model.device, self._model.dtype))
            embeds.append(normalize(features, "image"))
        return torch.cat(embeds)
