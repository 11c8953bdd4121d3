"""Questions to a gallery → the images that fit best, found exactly.

Shapes: N rows of the gallery, D projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_images, embed_texts
from component.model import BertCLIPModel
from component.search.gallery import Gallery, GalleryImage

_POOL = 64  # candidates beyond top_k whose scores are computed again in fp32; and the least to fold duplicates from


@dataclass(frozen=True)
class Query:
    """What is looked for: the sum of its parts.

    Attributes:
        texts, images: what the image should be like; several weigh the same.
        minus: texts of what should not be in it.
        image_weight: share of the images in the sum where there are texts too, from 0 to 1.
        minus_weight: of the mean of `minus`, beside 1 for the rest.
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
        since, until: those changed in [since, until), in seconds since 1970.
        threshold: those with at least this score.
        fold: an image whose cosine with a better one is at least this is told with that one; None: each for itself.
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
        score: the query's cosine with the image (a weighted sum of cosines where the query has several parts).
        place: share of `RANDOM_TEXTS` that fit the image less, from 0 to 1. Cosines of texts and images are small
            numbers that differ from model to model; this tells whether the query says more than a random text does.
        duplicates: images that were folded into this one, the best first.
    """

    image: GalleryImage
    score: float
    place: float
    duplicates: list[GalleryImage] = field(default_factory=list)


class Searcher:
    """A gallery and its model, ready to answer.

    Args:
        approximate: a faiss index of the gallery (`component.search.approximate`) to take the candidates from.
    """

    def __init__(self, gallery: Gallery, model: BertCLIPModel, processor: CLIPProcessor, approximate=None):
        self.gallery, self.model, self.processor, self.approximate = gallery, model, processor, approximate
        self._random = torch.tensor(gallery.about["random_texts"])
        self._version = None
        self._refresh()

    def _refresh(self) -> None:
        """See what another process has added or deleted since."""
        version = self.gallery.version()
        if version != self._version:
            self._vectors = torch.from_numpy(self.gallery.vectors())
            self._living = torch.from_numpy(self.gallery.living())
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
        if not parts:
            raise ValueError("The query is empty: give a text or an image.")
        if query.minus:
            parts.append(-query.minus_weight * embed_texts(self.model, self.processor, query.minus).embeds.mean(dim=0))
        return torch.stack(parts).sum(dim=0)

    def _embed_images(self, query: Query) -> Tensor:
        self._refresh()
        embedded = embed_images(self.model, self.processor, query.images)
        for row, reason in embedded.bad_images.items():
            raise ValueError(f"{query.images[row] if isinstance(query.images[row], str) else 'The image'}: {reason}.")
        for row in query.like:
            if self.gallery.image(row) is None:
                raise ValueError(f"The gallery has no image with the number {row}.")
        return torch.cat([embedded.embeds, self._vectors[list(query.like)].float()])

    def search(self, query: Tensor, top_k: int = 10, filter: Filter = Filter()) -> list[Hit]:
        """The `top_k` best images, the best first.

        Every row is compared, in fp16; the best are compared again in fp32.

        Args:
            query: (D,), as `embed` gives it.
        """
        self._refresh()
        rows, scores = self._candidates(query, top_k, filter)
        hits: list[Hit] = []
        kept = torch.empty(0, len(query))
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if filter.threshold is not None and score < filter.threshold:
                break
            vector = self._vectors[row].float()
            if filter.fold is not None and len(hits):
                best = (kept @ vector).max(dim=0)
                if best.values >= filter.fold:
                    hits[int(best.indices)].duplicates.append(self.gallery.image(row))
                    continue
            if len(hits) == top_k:
                break
            image = self.gallery.image(row)
            if image is None:
                continue  # deleted a moment ago
            place = (self._random @ vector < score).float().mean().item()
            hits.append(Hit(image, score, place))
            kept = torch.cat([kept, vector[None]])
        return hits

    def _candidates(self, query: Tensor, top_k: int, filter: Filter) -> tuple[Tensor, Tensor]:
        """Rows and their fp32 scores, falling; more than top_k."""
        allowed = self._allowed(filter)
        wanted = min(top_k * (4 if filter.fold is not None else 1) + _POOL, int(allowed.sum()))
        if not wanted:
            return torch.empty(0, dtype=torch.long), torch.empty(0)
        if self.approximate is not None:
            rows = self.approximate.search(query, wanted, allowed)
        else:
            scores = (self._vectors @ query.half()).float()
            rows = scores.masked_fill_(~allowed, -torch.inf).topk(wanted).indices
        scores = self._vectors[rows].float() @ query
        order = scores.argsort(descending=True, stable=True)
        return rows[order], scores[order]

    def _allowed(self, filter: Filter) -> Tensor:
        if (filter.folder, filter.since, filter.until) == (None, None, None):
            return self._living
        chosen = np.zeros(len(self._living), bool)
        rows = self.gallery.rows_where(filter.folder, filter.since, filter.until)[: len(chosen)]
        chosen[: len(rows)] = rows
        return torch.from_numpy(chosen)
