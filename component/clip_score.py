"""How well text and picture of a pair agree, in the eyes of a BertCLIP checkpoint."""

from collections.abc import Sequence

import numpy as np
import torch

from component.embedding import embed_images, embed_texts
from component.model import BertCLIPModel
from component.processor import load_processor


class ClipScorer:
    """Cosine of text and picture (the CLIP-score filter of LAION, 2111.02114, and DataComp, 2304.14108).

    Counts the scores it gives, so that a threshold can be chosen by looking at them.

    Args:
        path: checkpoint folder.
        batch_size: pairs that go through the towers at once; the GPU is used when there is one.

    Raises:
        ValueError, OSError: the folder holds no BertCLIP checkpoint.
    """

    EDGES = np.linspace(-1, 1, 201)  # bins of 0.01

    def __init__(self, path: str, batch_size: int = 64):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = BertCLIPModel.from_pretrained(path).to(device).eval()
        self._processor = load_processor(path)
        self._batch_size = batch_size
        self.counts = np.zeros(len(self.EDGES) - 1, dtype=np.int64)

    def __call__(self, texts: Sequence[str], paths: Sequence[str]) -> np.ndarray:
        """(n,) cosines; NaN for a picture that cannot be read."""
        text_embeds = embed_texts(self._model, self._processor, texts, self._batch_size).embeds
        images = embed_images(self._model, self._processor, paths, self._batch_size)
        scores = np.full(len(texts), np.nan)
        scores[images.rows] = (text_embeds[images.rows] * images.embeds).sum(dim=1).numpy()
        self.counts += np.histogram(scores[images.rows].clip(-1, 1), self.EDGES)[0]
        return scores

    def save_histogram(self, path: str, threshold: float | None = None) -> None:
        """Draw the scores counted so far, and how much each threshold would keep.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure  # not pyplot: no window system is touched
        except ImportError:
            raise ImportError("The histogram needs matplotlib: pip install -r requirements-dev.txt") from None
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.stairs(self.counts, self.EDGES, fill=True)
        axes.set(xlabel="cosine of image and text", ylabel="pairs")
        share = axes.twinx()
        kept = 1 - np.concatenate([[0], self.counts.cumsum()]) / max(self.counts.sum(), 1)
        share.plot(self.EDGES, kept, color="tab:orange")
        share.set(ylabel="share kept at this threshold", ylim=(0, 1.02))
        if threshold is not None:
            axes.axvline(threshold, color="black", linestyle="--")
        used = np.flatnonzero(self.counts)
        if len(used):
            axes.set_xlim(self.EDGES[max(used[0] - 5, 0)], self.EDGES[min(used[-1] + 6, len(self.EDGES) - 1)])
        figure.savefig(path, dpi=120)
