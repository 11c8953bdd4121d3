"""Where the images of a `PairTable` come from: decoded when asked for, or, in training, from the feature cache."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from component.image.load import BadImageError
from component.image.transform import ImageTransform
from component.pairs.pair_table import PairTable


class LoadedImages(NamedTuple):
    """The images of some rows.

    rows: those with a good image.
    inputs: of the model, one row for each of these; {} where there is none.
    bad: (row, reason) of the others.
    """

    rows: Sequence[int]
    inputs: dict[str, Tensor]
    bad: list[tuple[int, str]]


class GoodRows:
    """The rows 0 … total - 1 but for some, as an array of them would be that takes no memory.

    Args:
        without: (bad,) rising, the rows that are not among them.
    """

    def __init__(self, total: int, without: np.ndarray):
        self._total, self._shifted = total, without - np.arange(len(without))

    def __len__(self) -> int:
        return self._total - len(self._shifted)

    def __getitem__(self, places: Sequence[int]) -> np.ndarray:
        """(n,) places among them → (n,) rows."""
        places = np.asarray(places, np.int64)
        return places + np.searchsorted(self._shifted, places, side="right")


class ImageSource(Protocol):
    """What a `Pairs` asks for its images.

    rows: of the table, those that may have a good image.
    bad: (row, reason) of the others.
    """

    rows: GoodRows
    bad: list[tuple[int, str]]

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> LoadedImages:
        """The images of some of `self.rows`; what is random in them is drawn from the generator."""


class DecodedImages:
    """Image files, read and decoded each time: pixel_values (good, 3, H, W).

    Args:
        transform: makes the pixel_values.
    """

    def __init__(self, table: PairTable, transform: ImageTransform):
        self.table, self.transform = table, transform
        self.rows, self.bad = GoodRows(len(table), np.empty(0, np.int64)), []

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> LoadedImages:
        """As `ImageSource.load`. Raises OSError or MemoryError where that keeps an image from being judged."""
        good, images, bad = [], [], []
        for row in map(int, rows):
            place, locator = self.table.image(row)
            try:
                images.append(self.transform.read(place.read(locator), generator))
                good.append(row)
            except BadImageError as error:
                bad.append((row, f"{place.filename(locator)}: {error}"))
        return LoadedImages(good, {"pixel_values": self.transform.pixel_values(images)} if good else {}, bad)
