"""Queries to a gallery, and filters on its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a query to a running server needs only this file
    from PIL import Image


MINUS_WEIGHT = 0.5


@dataclass(frozen=True)
class Query:
    """A query: the sum of its parts.

    Attributes:
        texts, images: what the image should be like; several have the same weight.
        minus: texts of what should not be in it; their mean has the weight -MINUS_WEIGHT, the rest 1.
        image_weight: share of the images in the sum if there are texts too, from 0 to 1.
        like: rows of the gallery, as further images.
    """

    texts: Sequence[str] = ()
    images: Sequence[str | Image.Image] = ()
    minus: Sequence[str] = ()
    image_weight: float = 0.5
    like: Sequence[int] = ()

    @property
    def name(self) -> str:
        """A readable name of the query."""
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
