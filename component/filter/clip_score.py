"""How well the caption and the image of a pair agree according to a BertCLIP checkpoint."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from component.checkpoint import load_identified
from component.embedding import embed_texts, normalize
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.known_forms import warn_of_unknown


class ClipScorer:
    """Cosine of caption and image (the CLIP-score filter of LAION, 2111.02114, and DataComp, 2304.14108).

    Args:
        path: checkpoint folder.
        batch_size: pairs per forward pass.
        on_scores: called with each array of scores.
        devices: that share the work; None: all GPUs, or the CPU without one.

    Attributes:
        model: digest of the identity of the model.
        crop: makes the images that the scorer takes.

    Raises:
        ValueError: the folder is not a BertCLIP checkpoint.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 64,
        on_scores: Callable[[np.ndarray], None] = lambda scores: None,
        devices: Sequence[str] | None = None,
    ):
        model, self._processor, identity = load_identified(path)
        devices = devices or [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
        self._models = [model.to(devices[0]), *(copy.deepcopy(model).to(device) for device in devices[1:])]
        self._threads = ThreadPoolExecutor(len(self._models))
        self._batch_size, self._on_scores, self._warned = batch_size, on_scores, False
        self._transform = ImageTransform(self._processor.image_processor)
        self.model, self.crop = identity.image.digest(identity.text.digest()), self._transform.centre_crop

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) cosines of n captions and images, n > 0, each image (H, W, 3) uint8 as `crop` returns it."""
        share = -(-len(texts) // len(self._models))
        starts = range(0, len(texts), share)
        shares = ([items[start : start + share] for start in starts] for items in (texts, images))
        scores = np.concatenate(list(self._threads.map(self._score, self._models, *shares)))
        self._on_scores(scores)
        return scores

    @torch.inference_mode()
    def _score(self, model: BertCLIPModel, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        embeds = []
        for start in range(0, len(images), self._batch_size):
            pixels = torch.from_numpy(np.stack(images[start : start + self._batch_size]))
            pixel_values = self._transform.pixel_values(pixels, model.device, model.dtype)
            embeds.append(normalize(model.get_image_features(pixel_values), "image"))
        texts = embed_texts(model, self._processor, texts, self._batch_size, on_unknown=self._first_unknown)
        return (texts.embeds * torch.cat(embeds)).sum(dim=1).numpy()

    def _first_unknown(self, *counts) -> None:
        """A line for the first texts with [UNK], not for each of a thousand chunks."""
        if not self._warned:
            self._warned = True
            warn_of_unknown(*counts)
