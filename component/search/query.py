"""Queries to a gallery → the images that fit best, found exactly.

Shapes: N rows of the gallery, D projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_images, embed_texts
from component.model import BertCLIPModel
from component.search.approximate import ApproximateIndex
from component.search.gallery import Gallery
from component.search.rows import ABSENT, GalleryImage

_MORE_CANDIDATES = 64  # beyond the number asked for: scores in fp16 can be in another order than those in fp32


@dataclass(frozen=True)
class Query:
    """What to look for: the sum of its parts.

    Attributes:
        texts, images: what the image should be like; several have the same weight.
        minus: texts of what should not be in it.
        image_weight: share of the images in the sum if there are texts too, from 0 to 1.
        minus_weight: weight of the mean of `minus`; the rest has weight 1.
        like: rows of the gallery, as further images.
    """

    texts: Sequence[str] = ()
    images: Sequence[str | Image.Image] = ()
    minus: Sequence[str] = ()
    image_weight: float = 0.5
    minus_weight: float = 0.5
    like: Sequence[int] = ()

    @property
    def name(self) -> str:
        """What a person would call it."""
        images = [image if isinstance(image, str) else "an image" for image in self.images]
        parts = [*self.texts, *images, *(f"#{row}" for row in self.like)]
        return " + ".join(parts) + "".join(f" − {text}" for text in self.minus)


@dataclass(frozen=True)
class Filter:
    """Which images may be found.

    Attributes:
        folder: those below it.
        since, until: those that date from [since, until), in seconds since 1970; see `Gallery.rows_where`.
        threshold: those with at least this score.
        fold: an image whose cosine with a better one is at least this is shown with that one; None: on its own.
    """

    folder: str | None = None
    since: float | None = None
    until: float | None = None
    threshold: float | None = None
    fold: float | None = None


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
        """The form that the command line writes, the server sends and the page reads."""
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


class Searcher:
    """A gallery and its model, ready to answer.

    Args:
        approximate: an index of the gallery to take the candidates from; None: every row is compared.
    """

    def __init__(
        self,
        gallery: Gallery,
        model: BertCLIPModel,
        processor: CLIPProcessor,
        approximate: ApproximateIndex | None = None,
    ):
        self.gallery, self.model, self.processor, self.approximate = gallery, model, processor, approximate
        self._version = None

    def _refresh(self) -> None:
        """Take note of what another process has written. Run this inside a snapshot."""
        version = self.gallery.version()
        if version != self._version:
            self._vectors = torch.from_numpy(self.gallery.vectors())
            self._living = torch.from_numpy(self.gallery.rows_where())
            self._version = version

    def embed(self, query: Query) -> Tensor:
        """(D,) fp32: the sum of the query's parts, each the mean of its L2-normalised embeddings.

        Raises:
            ValueError: the query is empty, or an image of it cannot be read.
        """
        parts = []
        images = self._embed_images(query)
        if query.texts:
            texts = embed_texts(self.model, self.processor, query.texts).embeds.mean(dim=0)
            parts.append(texts * (1 - query.image_weight if len(images) else 1))
        if len(images):
            parts.append(images.mean(dim=0) * (query.image_weight if query.texts else 1))
        if query.minus:
            parts.append(-query.minus_weight * embed_texts(self.model, self.processor, query.minus).embeds.mean(dim=0))
        if not parts:
            raise ValueError("The query is empty: give a text or an image.")
        return torch.stack(parts).sum(dim=0)

    def _embed_images(self, query: Query) -> Tensor:
        embedded = embed_images(self.model, self.processor, query.images)
        for row, reason in embedded.bad_images.items():
            raise ValueError(f"{query.images[row] if isinstance(query.images[row], str) else 'The image'}: {reason}.")
        with self.gallery.snapshot():
            self._refresh()
            for row in query.like:
                if self.gallery.image(row) is None:
                    raise ValueError(f"The gallery has no image with the id {row}.")
            return torch.cat([embedded.embeds, self._vectors[list(query.like)].float()])

    def search(self, query: Tensor, top_k: int = 10, where: Filter = Filter()) -> list[Hit]:
        """The `top_k` best images, the best first, in one snapshot of the gallery.

        Every row is compared in fp16; the best are compared again in fp32.

        Args:
            query: (D,), see `embed`.
        """
        with self.gallery.snapshot():
            self._refresh()
            allowed = self._allowed(where)
            available = int(allowed.sum())
            wanted = min(top_k * (1 if where.fold is None else 4) + _MORE_CANDIDATES, available)
            while True:
                rows, scores = self._candidates(query, wanted, allowed)
                hits = self._hits(rows, scores, top_k, where)
                is_all = wanted == available or (where.threshold is not None and scores[-1] < where.threshold)
                if len(hits) == top_k or is_all:
                    return hits
                wanted = min(4 * wanted, available)  # most candidates were duplicates

    def _hits(self, rows: Tensor, scores: Tensor, top_k: int, where: Filter) -> list[Hit]:
        found: list[tuple[int, float, list[int]]] = []  # row, score, rows of duplicates
        kept = torch.empty(top_k, self._vectors.shape[1]) if where.fold is not None else None
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if where.threshold is not None and score < where.threshold:
                break
            if kept is not None and found:
                best = (kept[: len(found)] @ self._vectors[row].float()).max(dim=0)
                if best.values >= where.fold:
                    found[int(best.indices)][2].append(row)
                    continue
            if len(found) == top_k:
                break
            if kept is not None:
                kept[len(found)] = self._vectors[row].float()
            found.append((row, score, []))
        image = self.gallery.image
        return [Hit(image(row), score, [image(row) for row in duplicates]) for row, score, duplicates in found]

    def _candidates(self, query: Tensor, wanted: int, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and their fp32 scores, falling; at least `wanted`."""
        if not wanted:
            return torch.empty(0, dtype=torch.long), torch.empty(0)
        if self.approximate is not None:
            rows = self.approximate.search(query, wanted, allowed[: self.approximate.rows])
            newer = allowed[self.approximate.rows :].nonzero()[:, 0] + self.approximate.rows
            rows = torch.cat([rows, newer])
        else:
            scores = (self._vectors @ query.half()).float()
            rows = scores.masked_fill_(~allowed, -torch.inf).topk(wanted).indices
        scores = self._vectors[rows].float() @ query
        order = scores.argsort(descending=True, stable=True)
        return rows[order], scores[order]

    def _allowed(self, where: Filter) -> Tensor:
        if (where.folder, where.since, where.until) == (None, None, None):
            return self._living
        return torch.from_numpy(self.gallery.rows_where(where.folder, where.since, where.until))
