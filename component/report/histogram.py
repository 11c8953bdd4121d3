"""A histogram of CLIP scores, from which to choose a threshold."""

import numpy as np

from component.report.figures import load_pyplot, new_figure
from component.report.labels import label

KEPT_COLOUR = "#b4500f"


class ScoreHistogram:
    """Counts cosines in bins of 0.01 and draws them.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. It is raised here, not after hours of scoring.
    """

    EDGES = np.linspace(-1, 1, 201)

    def __init__(self):
        load_pyplot()
        self.counts = np.zeros(len(self.EDGES) - 1, dtype=np.int64)

    def add(self, scores: np.ndarray) -> None:
        """Count scores; NaN is ignored."""
        self.counts += np.histogram(scores[~np.isnan(scores)].clip(-1, 1), self.EDGES)[0]

    def save(self, path: str, threshold: float | None = None) -> None:
        """Draw how many pairs have each score, and which share of pairs each threshold would keep, as PNG."""
        with new_figure(path, figsize=(8, 4), layout="constrained") as (_, axes):
            axes.stairs(self.counts, self.EDGES, fill=True)
            axes.set(xlabel=label("cosine of image and text"), ylabel=label("pairs"))
            share = axes.twinx()
            kept = 1 - np.concatenate([[0], self.counts.cumsum()]) / max(self.counts.sum(), 1)
            share.plot(self.EDGES, kept, color=KEPT_COLOUR)
            share.set_ylabel(label("share kept at this threshold"), color=KEPT_COLOUR)
            share.set_ylim(0, 1.02)
            if threshold is not None:
                axes.axvline(threshold, color="black", linestyle="--")
            used = np.flatnonzero(self.counts)
            if len(used):
                axes.set_xlim(self.EDGES[max(used[0] - 5, 0)], self.EDGES[min(used[-1] + 6, len(self.EDGES) - 1)])
