"""How well text and picture of a pair agree, in the eyes of a BertCLIP checkpoint."""

from collections.abc import Callable, Sequence

import numpy as np

from component.checkpoint import load_checkpoint
from component.embedding import embed_images, embed_texts


class ClipScorer:
    """Cosine of text and picture (the CLIP-score filter of LAION, 2111.02114, and DataComp, 2304.14108).

    Args:
        path: checkpoint folder.
        batch_size: pairs that go through the towers at once; the GPU is used when there is one.
        on_scores: called with each array of scores that is given out.

    Raises:
        ValueError: the folder holds no BertCLIP checkpoint.
    """

    def __init__(self, path: str, batch_size: int = 64, on_scores: Callable[[np.ndarray], None] = lambda scores: None):
        self._model, self._processor = load_checkpoint(path)
        self._batch_size, self._on_scores = batch_size, on_scores

    def __call__(self, texts: Sequence[str], paths: Sequence[str]) -> np.ndarray:
        """(n,) cosines; NaN for a picture that cannot be read."""
        text_embeds = embed_texts(self._model, self._processor, texts, self._batch_size).embeds
        images = embed_images(self._model, self._processor, paths, self._batch_size)
        scores = np.full(len(texts), np.nan)
        scores[images.rows] = (text_embeds[images.rows] * images.embeds).sum(dim=1).numpy()
        self._on_scores(scores)
        return scores
