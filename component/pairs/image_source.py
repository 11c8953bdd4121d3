"""Where the images of a `PairTable` come from: decoded when asked for, or, in training, from the feature cache."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from component.image.batch import ImageBatch
from component.image.transform import ImageTransform
from component.pairs.pair_table import PairTable


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

    rows: the rows of the table that may have a good image.
    bad: row → reason, of the other rows.
    bytes_per_image: size of the columns that `load` gives.
    """

    rows: GoodRows
    bad: dict[int, str]
    bytes_per_image: int

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> ImageBatch:
        """Load the images of some of `self.rows`; the columns are inputs of the model.

        Args:
            generator: source of all randomness (crop, flip); None: torch's global one.
        """


class DecodedImages:
    """Image files, read and decoded each time: pixel_values (good, 3, H, W).

    Args:
        transform: makes the pixel_values.
    """

    def __init__(self, table: PairTable, transform: ImageTransform):
        self.table, self.transform = table, transform
        self.rows, self.bad = GoodRows(len(table), np.empty(0, np.int64)), {}
        self.bytes_per_image = transform.bytes_per_image

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> ImageBatch:
        """As `ImageSource.load`. Raises OSError or MemoryError when an image cannot be judged because of them."""

        def read(row: int) -> np.ndarray:
            place, locator = self.table.image(row)
            return self.transform.read(place.read(locator), generator)

        batch = ImageBatch.read(rows, read, self.transform.pixel_values)
        return batch._replace(bad={row: f"{self.table.filename(row)}: {why}" for row, why in batch.bad.items()})
