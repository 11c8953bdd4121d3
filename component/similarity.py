"""How similar are these texts and pictures: cosines, scores and the best matches.

Shapes: Q queries, C candidates.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import Embedded, embed_images, embed_texts
from component.model import BertCLIPModel

TASKS = ("image-text", "text-text", "image-image")
SELF_LOGIT = -10000.0  # of an item with itself, as in the published recipe
_CELLS_PER_CHUNK = 2**20  # 4 MB of fp32, and a few times that for sorting


class Match(NamedTuple):
    """One candidate of a query: its index, its share of the softmax over all candidates, and the raw cosine."""

    candidate: int
    score: float
    cosine: float


@dataclass(frozen=True)
class Similarity:
    """Every query compared with every candidate.

    Score = softmax over all candidates of logit_scale · cosine. Where the candidates are the queries themselves, an
    item's logit with itself is set to −10000 before the softmax, and it is no match of its own. `best` computes a few
    queries at a time, so its memory does not grow with Q · C.

    Attributes:
        logit_scale: inverse temperature of the model, already exponentiated.
    """

    queries: Embedded
    candidates: Embedded
    logit_scale: float

    @property
    def is_among_themselves(self) -> bool:
        return self.queries is self.candidates

    def cosines(self) -> Tensor:
        """(Q, C) raw cosines, those of an item with itself included."""
        return self.queries.embeds @ self.candidates.embeds.T

    def scores(self) -> Tensor:
        """(Q, C) softmax scores; each row sums to 1."""
        return torch.cat([scores for scores, _ in self._chunks()])

    def best(self, top_k: int | None = None) -> Iterator[list[Match]]:
        """For each query in turn its best matches, falling; equal ones in the order they were given.

        Args:
            top_k: matches per query; None: all of them.
        """
        others = len(self.candidates) - self.is_among_themselves
        top_k = others if top_k is None else min(top_k, others)
        for scores, cosines in self._chunks():
            # Sorted by cosine: far behind the first, softmax scores underflow to ties.
            order = cosines.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
            columns = order.tolist(), scores.gather(1, order).tolist(), cosines.gather(1, order).tolist()
            for row in zip(*columns, strict=True):
                yield [Match(*match) for match in zip(*row, strict=True)]

    def transposed(self) -> "Similarity":
        """The candidates as queries and the other way round."""
        return Similarity(self.candidates, self.queries, self.logit_scale)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(scores, cosines) of some queries at a time; among themselves, the cosine of an item with itself is -inf."""
        rows = max(1, _CELLS_PER_CHUNK // max(1, len(self.candidates)))
        for start in range(0, len(self.queries), rows):
            cosines = self.queries.embeds[start : start + rows] @ self.candidates.embeds.T
            logits = self.logit_scale * cosines
            if self.is_among_themselves:
                itself = torch.arange(start, start + len(cosines))[:, None]
                logits.scatter_(1, itself, SELF_LOGIT)
                cosines.scatter_(1, itself, -torch.inf)
            yield logits.softmax(dim=1), cosines


def compare(model: BertCLIPModel, queries: Embedded, candidates: Embedded) -> Similarity:
    """Compare what `embed_texts` and `embed_images` gave; pass the same object twice to compare it with itself.

    Raises:
        ValueError: a side is empty, or there is only one item to compare with itself.
    """
    for side in (queries, candidates):
        if not len(side):
            reason = f": the {len(side.items)} given cannot be read" if side.bad_images else ""
            raise ValueError(f"There is no {side.kind} to compare{reason}.")
    if queries is candidates and len(queries) < 2:
        raise ValueError(
            f"One {queries.kind} has nothing to be compared with: {queries.kind}-{queries.kind} needs two."
        )
    logit_scale = model.logit_scale.exp().item()
    if not math.isfinite(logit_scale):
        raise ValueError(f"The model's logit_scale is {model.logit_scale.item()}: take another checkpoint.")
    return Similarity(queries, candidates, logit_scale)


def choose_tasks(task: str | None, has_images: bool, has_texts: bool) -> list[str]:
    """Which of `TASKS` to do: `task`, or "all" of them, or, for None, the one that the given items allow.

    Raises:
        ValueError: items of a kind are missing.
    """
    if task is None:
        task = "image-text" if has_images and has_texts else "text-text" if has_texts else "image-image"
    tasks = list(TASKS) if task == "all" else [task]
    for kind, has_any in (("image", has_images), ("text", has_texts)):
        if not has_any and any(kind in chosen for chosen in tasks):
            raise ValueError(f"--task {task} needs {kind}s: add --{kind}s.")
    return tasks


def image_text_similarity(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    images: Sequence[str | Image.Image],
    texts: Sequence[str],
    **options,
) -> Similarity:
    """Images as queries, texts as candidates; `.transposed()` asks the other way round.

    Args:
        images: paths or PIL images; bad ones are left out and named in `.queries.bad_images`.
        options: batch_size and on_batch, as in `embed_texts`.
    """
    embedded = embed_images(model, processor, images, folder=os.sep, **options)
    return compare(model, embedded, embed_texts(model, processor, texts, **options))


def text_text_similarity(
    model: BertCLIPModel, processor: CLIPProcessor, texts: Sequence[str], **options
) -> Similarity:
    """Each text with all the others."""
    embedded = embed_texts(model, processor, texts, **options)
    return compare(model, embedded, embedded)


def image_image_similarity(
    model: BertCLIPModel, processor: CLIPProcessor, images: Sequence[str | Image.Image], **options
) -> Similarity:
    """Each image with all the others."""
    embedded = embed_images(model, processor, images, folder=os.sep, **options)
    return compare(model, embedded, embedded)
