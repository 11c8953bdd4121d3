"""Judge whether a gallery has any image for a text: a search alone always returns something.

If images fit a text, they stand out from the rest; if none fits, many are about equally near. So the measure is the
share that the TOP best images have in softmax(SCALE · cosine) over the whole gallery; five rather than one, because
several may fit. What share a text without an image reaches differs between models and galleries: the threshold is
measured with the gallery's random texts, after leaving out the images that are nearest to each of them.

Shapes: Q texts, N rows, D projection width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from component.gallery.reader import Gallery

SCALE, TOP = 20, 5
_ALIKE = 0.7  # images with at least this cosine to the best image are left out with it
_QUANTILE = 0.85  # share of the random texts without an image that are below the threshold
_ROWS_AT_A_TIME = 65_536


def concentration(best: Tensor, total: Tensor) -> Tensor:
    """(Q,) log of the share, at most 0.

    Args:
        best: (Q, at most TOP) cosines of the best images.
        total: (Q,) logsumexp of SCALE · cosine over the whole gallery.
    """
    return (SCALE * best).logsumexp(dim=-1) - total


def absence_threshold(gallery: Gallery) -> float | None:
    """The concentration below which a text probably has no image; None if the gallery has too few images to judge."""
    texts, living = torch.tensor(gallery.about["random_texts"]), torch.from_numpy(gallery.rows_where())
    if int(living.sum()) <= 2 * TOP:
        return None
    highest, found = torch.full((len(texts),), -torch.inf), torch.zeros(texts.shape)
    for vectors in _chunks(gallery, living):
        scores, rows = (texts @ vectors.T).max(dim=1)
        found[scores > highest] = vectors[rows[scores > highest]]
        highest = highest.maximum(scores)
    best, total = torch.full((len(texts), TOP), -torch.inf), torch.full((len(texts),), -torch.inf)
    for vectors in _chunks(gallery, living):
        scores = (texts @ vectors.T).masked_fill_(found @ vectors.T >= _ALIKE, -torch.inf)
        best = torch.cat([best, scores], dim=1).topk(TOP, dim=1).values
        total = torch.logaddexp(total, (SCALE * scores).logsumexp(dim=1))
    left = best[:, 0] > -torch.inf
    return concentration(best[left], total[left]).quantile(_QUANTILE).item() if left.any() else None


def _chunks(gallery: Gallery, living: Tensor) -> Iterator[Tensor]:
    vectors = gallery.vectors()
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        chunk = torch.from_numpy(vectors[start : start + _ROWS_AT_A_TIME].astype(np.float32))
        yield chunk[living[start : start + _ROWS_AT_A_TIME]]
