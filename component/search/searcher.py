"""A gallery and its model → the images that fit a query best, found exactly.

Shapes: N rows of the gallery, D projection width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from component.gallery.reader import Gallery, cut
from component.gallery.rows import ABSENT, GalleryImage
from component.search.comparison import compare, top
from component.search.presence import SCALE, TOP, concentration, log_sum_exp
from component.search.query import MINUS_WEIGHT, Filter, Query

if TYPE_CHECKING:  # a query to a small gallery needs neither torch nor faiss
    from component.search.approximate import ApproximateIndex

_ANYWHERE = Filter()
_MORE_CANDIDATES = 64  # extra candidates, because scores in fp16 can be in another order than in fp32


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        score: cosine of the query and the image (a weighted sum of cosines if the query has several parts).
        duplicates: images that were folded into this one, the best first.
    """

    image: GalleryImage
    score: float
    duplicates: list[GalleryImage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            **_as_json(self.image),
            "score": round(self.score, 6),
            "duplicates": [_as_json(image) for image in self.duplicates],
        }


def _as_json(image: GalleryImage) -> dict[str, Any]:
    return {
        "id": image.row,
        "path": image.path,
        "caption": image.file.caption,
        "digest": image.digest.hex(),
        "absent": image.status == ABSENT,
    }


@dataclass(frozen=True)
class Answer:
    """What was found for a query.

    Attributes:
        probably_absent: whether nothing in the gallery may fit, see `component.search.presence`; None: not judged.
    """

    hits: list[Hit]
    probably_absent: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The form that the command line writes, the server sends and the page reads."""
        return {"probably_absent": self.probably_absent, "hits": [hit.as_json() for hit in self.hits]}


class Towers(Protocol):
    """Embeds what a query is made of: `component.search.towers` or `component.numpy_text_tower`."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) fp32, L2-normalised."""

    def embed_images(self, images: Sequence) -> np.ndarray:
        """(n, D) fp32, L2-normalised. Raises ValueError if an image cannot be read."""


class Searcher:
    """A gallery and its model, ready to answer.

    Args:
        towers: of the model.
        approximate: an index of the gallery to take the candidates from; None: every row is compared.
        judges_absence: False for a model whose text half is not the one that the threshold was measured with.

    Attributes:
        is_current: False once the gallery was indexed with another text half; as of the last answer.
    """

    def __init__(
        self,
        gallery: Gallery,
        towers: Towers,
        approximate: ApproximateIndex | None = None,
        judges_absence: bool = True,
    ):
        self.gallery, self.towers, self.approximate = gallery, towers, approximate
        self._version, self._judges_absence = None, judges_absence

    def _refresh(self) -> None:
        """Reload what another process has written. Call this inside a snapshot."""
        version = self.gallery.version()
        if version != self._version:
            self._vectors = self.gallery.vectors()
            self._living = self.gallery.rows_where()
            self.is_current = self.gallery.setting("fingerprint") == self.gallery.about.get("fingerprint")
            judges = self._judges_absence and self.is_current
            self._threshold = self.gallery.setting("absence_threshold") if judges else None
            self._version = version

    def embed(self, query: Query) -> np.ndarray:
        """(D,) fp32: the sum of the query's parts, each the mean of its L2-normalised embeddings.

        Raises:
            ValueError: the query is empty, or an image of it cannot be read.
        """
        parts = []
        images = self._embed_images(query)
        if query.texts:
            texts = self._cut(self.towers.embed_texts(query.texts)).mean(axis=0)
            parts.append(texts * (1 - query.image_weight if len(images) else 1))
        if len(images):
            parts.append(images.mean(axis=0) * (query.image_weight if query.texts else 1))
        if query.minus:
            parts.append(-MINUS_WEIGHT * self._cut(self.towers.embed_texts(query.minus)).mean(axis=0))
        if not parts:
            raise ValueError("The query is empty: give a text or an image.")
        return np.sum(parts, axis=0, dtype=np.float32)

    def answer(self, query: Query, top_k: int = 10, where: Filter = _ANYWHERE, offset: int = 0) -> Answer:
        """Embed a query and search; leave out the `offset` best hits, as a page does that loads more."""
        vector = self.embed(query)
        is_text = query.texts and not (query.images or query.like or query.minus)
        with self.gallery.snapshot():
            hits, found = self._search(vector, offset + top_k, where)
            is_judged = is_text and hits and found is not None and self._threshold is not None
            return Answer(hits[offset:], found < self._threshold if is_judged else None)

    def _cut(self, embeds: np.ndarray) -> np.ndarray:
        return cut(embeds, self.gallery.width)

    def _embed_images(self, query: Query) -> np.ndarray:
        embeds = [self._cut(self.towers.embed_images(query.images))] if query.images else []
        with self.gallery.snapshot():
            self._refresh()
            for row in query.like:
                if self.gallery.image(row) is None:
                    raise ValueError(f"The gallery has no image with the id {row}.")
            return np.concatenate([*embeds, self._vectors[list(query.like)].astype(np.float32)])

    def search(self, query: np.ndarray, top_k: int = 10, where: Filter = _ANYWHERE) -> list[Hit]:
        """The `top_k` best images, the best first, in one snapshot of the gallery.

        Every row is compared in fp16; the best are compared again in fp32.

        Args:
            query: (D,), see `embed`.
        """
        with self.gallery.snapshot():
            return self._search(query, top_k, where)[0]

    def _search(self, query: np.ndarray, top_k: int, where: Filter) -> tuple[list[Hit], float | None]:
        """Hits, and their `concentration`; None if only some rows were compared."""
        self._refresh()
        allowed, scores, found = self._allowed(where), None, None
        available = int(allowed.sum())
        if self.approximate is None and available:
            length = np.linalg.norm(query)
            scores = compare(self._vectors, query)
            scores[~self._living] = -np.inf
            total = log_sum_exp(SCALE / length * scores)
            if allowed is not self._living:
                scores[~allowed] = -np.inf
            found = float(concentration(scores[top(scores, TOP)] / length, total))
        top_k = min(top_k, available)
        wanted = min(top_k * (1 if where.fold is None else 4) + _MORE_CANDIDATES, available)
        while True:
            rows, exact = self._candidates(query, scores, wanted, allowed)
            hits = self._hits(rows, exact, top_k, where)
            is_all = wanted == available or (where.threshold is not None and exact[-1] < where.threshold)
            if len(hits) == top_k or is_all:
                return hits, found
            wanted = min(4 * wanted, available)  # most candidates were duplicates

    def _hits(self, rows: np.ndarray, scores: np.ndarray, top_k: int, where: Filter) -> list[Hit]:
        found: list[tuple[int, float, list[int]]] = []  # row, score, rows of duplicates
        kept = np.empty((top_k, self._vectors.shape[1]), np.float32) if where.fold is not None else None
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if where.threshold is not None and score < where.threshold:
                break
            if kept is not None and found:
                cosines = kept[: len(found)] @ self._vectors[row].astype(np.float32)
                if cosines.max() >= where.fold:
                    found[int(cosines.argmax())][2].append(row)
                    continue
            if len(found) == top_k:
                break
            if kept is not None:
                kept[len(found)] = self._vectors[row]
            found.append((row, score, []))
        image = self.gallery.image
        return [Hit(image(row), score, [image(row) for row in duplicates]) for row, score, duplicates in found]

    def _candidates(
        self, query: np.ndarray, scores: np.ndarray | None, wanted: int, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and their fp32 scores, falling; at least `wanted`. `scores` (N,) are those in fp16, if known."""
        if not wanted:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if scores is not None:
            rows = np.sort(top(scores, wanted))
        else:
            rows = self.approximate.search(query, wanted, allowed[: self.approximate.rows])
            newer = np.flatnonzero(allowed[self.approximate.rows :]) + self.approximate.rows
            rows = np.concatenate([rows, newer])
        exact = self._vectors[rows].astype(np.float32) @ query
        order = np.argsort(-exact, kind="stable")
        return rows[order], exact[order]

    def _allowed(self, where: Filter) -> np.ndarray:
        if (where.folder, where.since, where.until) == (None, None, None):
            return self._living
        return self.gallery.rows_where(where.folder, where.since, where.until)
