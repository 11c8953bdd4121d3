"""Similarity of texts and images: cosines, softmax scores, best matches.

Shapes: Q queries, C candidates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from component.embedded import Embedded

if TYPE_CHECKING:  # transformers takes two seconds to import, and a comparison does not need it
    from transformers import CLIPProcessor

    from component.model import BertCLIPModel

TASKS = ("image-text", "text-text", "image-image")
SELF_LOGIT = -10000.0  # logit of an item with itself, as in the published recipe
_CELLS_PER_CHUNK = 2**20  # 4 MB of fp32, and several times that for sorting


class Match(NamedTuple):
    """One candidate of a query.

    candidate: its index.
    score: its softmax score over all candidates of the query.
    cosine: the raw cosine.
    """

    candidate: int
    score: float
    cosine: float


@dataclass(frozen=True)
class Similarity:
    """Every query compared with every candidate.

    The score is the softmax over all candidates of logit_scale · cosine. If queries and candidates are the same
    object, the logit of an item with itself is set to −10000 before the softmax, and no item is a match of itself.
    `best` works on a few queries at a time, so its memory does not grow with Q · C.

    Attributes:
        logit_scale: inverse temperature of the model, already exponentiated.

    >>> similarity = text_text_similarity(model, processor, ["一只小狗", "一只小狗在摇尾巴", "红色的圆"])
    >>> [len(matches) for matches in similarity.best(top_k=1)]
    [1, 1, 1]
    """

    queries: Embedded
    candidates: Embedded
    logit_scale: float

    @property
    def is_among_themselves(self) -> bool:
        """Whether the candidates are the queries."""
        return self.queries is self.candidates

    def cosines(self) -> Tensor:
        """(Q, C) raw cosines, including those of an item with itself."""
        return self.queries.embeds @ self.candidates.embeds.T

    def scores(self) -> Tensor:
        """(Q, C) softmax scores; each row sums to 1."""
        return torch.cat([scores for scores, _ in self._chunks()])

    def best(self, top_k: int | None = None) -> Iterator[list[Match]]:
        """Yield the best matches of each query, best first; equal candidates keep their order.

        Args:
            top_k: matches per query; None: all.
        """
        others = len(self.candidates) - self.is_among_themselves
        top_k = others if top_k is None else min(top_k, others)
        for scores, cosines in self._chunks():
            # Sort by cosine: the softmax scores of distant candidates underflow to ties.
            order = cosines.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
            columns = order.tolist(), scores.gather(1, order).tolist(), cosines.gather(1, order).tolist()
            for row in zip(*columns, strict=True):
                yield [Match(*match) for match in zip(*row, strict=True)]

    def transposed(self) -> Similarity:
        """The same comparison with queries and candidates swapped."""
        return Similarity(self.candidates, self.queries, self.logit_scale)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (scores, cosines) of a few queries; if queries are candidates, an item's own cosine is -inf."""
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
    """Compare what `embed_texts` and `embed_images` returned.

    Args:
        queries, candidates: pass the same object twice to compare items with each other.

    Raises:
        ValueError: a side is empty; there is only one item to compare with itself; or logit_scale is not finite.
    """
    return compare_at(model.logit_scale.exp().item(), queries, candidates)


def compare_at(logit_scale: float, queries: Embedded, candidates: Embedded) -> Similarity:
    """`compare` for the logit_scale of a model, already exponentiated."""
    for side in (queries, candidates):
        if not len(side):
            reason = f": none of the {len(side.items)} given can be read" if side.bad_images else ""
            raise ValueError(f"There is no {side.kind} to compare{reason}.")
    if queries is candidates and len(queries) < 2:
        raise ValueError(f"There is only one {queries.kind}; {queries.kind}-{queries.kind} needs at least two.")
    if not math.isfinite(logit_scale):
        raise ValueError(f"The model's logit_scale is {logit_scale} after exp. Use another checkpoint.")
    return Similarity(queries, candidates, logit_scale)


def choose_tasks(task: str | None, has_images: bool, has_texts: bool) -> list[str]:
    """The tasks of `TASKS` to run: all of them for "all"; for None, the one that the given items allow.

    Raises:
        ValueError: the task needs items of a kind that is not given.

    >>> choose_tasks(None, has_images=True, has_texts=False)
    ['image-image']
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
    """Compare images (queries) with texts (candidates); `.transposed()` asks the other way round.

    Args:
        images: paths or PIL images; bad ones are left out and named in `.queries.bad_images`.
        options: `batch_size` and `on_batch` of `embed_texts`.

    Raises:
        ValueError: see `compare`.

    >>> similarity = image_text_similarity(model, processor, ["images/test/photo_cat.jpg"], ["一只小狗", "红色的圆"])
    >>> similarity.scores().shape
    torch.Size([1, 2])
    """
    from component.embedding import embed_images, embed_texts

    embedded = embed_images(model, processor, images, folder=os.sep, **options)
    return compare(model, embedded, embed_texts(model, processor, texts, **options))


def text_text_similarity(
    model: BertCLIPModel, processor: CLIPProcessor, texts: Sequence[str], **options
) -> Similarity:
    """Compare each text with all others. Arguments and errors as in `image_text_similarity`."""
    from component.embedding import embed_texts

    embedded = embed_texts(model, processor, texts, **options)
    return compare(model, embedded, embedded)


def image_image_similarity(
    model: BertCLIPModel, processor: CLIPProcessor, images: Sequence[str | Image.Image], **options
) -> Similarity:
    """Compare each image with all others. Arguments and errors as in `image_text_similarity`."""
    from component.embedding import embed_images

    embedded = embed_images(model, processor, images, folder=os.sep, **options)
    return compare(model, embedded, embedded)
