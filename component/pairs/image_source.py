"""Sources of the images of a `PairTable`: decoded on demand, or read from the feature cache."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from component.image.batch import ImageBatch
from component.image.transform import ImageTransform
from component.pairs.image_stores import expect_images
from component.pairs.pair_table import PairTable


class GoodRows:
    """The rows 0 … total - 1 without some of them, like an array, but without its memory.

    Args:
        without: (bad,) ascending, the rows that are left out.
    """

    def __init__(self, total: int, without: Sequence[int] = ()):
        self._total, self._shifted = total, np.asarray(without, np.int64) - np.arange(len(without))

    def __len__(self) -> int:
        return self._total - len(self._shifted)

    def __getitem__(self, indices: slice | Sequence[int]) -> np.ndarray:
        """(n,) indices into these rows, or a slice of them → (n,) rows."""
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        indices = np.asarray(indices, np.int64)
        return indices + np.searchsorted(self._shifted, indices, side="right")


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
        """Load the images of some of `self.rows`; the columns are inputs of the model, or the pixels that become them.

        Args:
            generator: source of all randomness (crop, flip); None: torch's global one.
        """


class DecodedImages:
    """Image files, read and decoded each time: pixels (good, H, W, 3) uint8.

    Args:
        transform: makes the pixels, and pixel_values of them.
    """

    def __init__(self, table: PairTable, transform: ImageTransform):
        self.table, self.transform = table, transform
        self.rows, self.bad = GoodRows(len(table)), {}
        self.bytes_per_image = transform.bytes_per_image

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> ImageBatch:
        """As `ImageSource.load`. Raises OSError or MemoryError when an image cannot be judged because of them."""

        def read(row: int) -> np.ndarray:
            store, locator = self.table.image(row)
            return self.transform.read(store.read(locator), generator)

        expect_images(self.table.image(row) for row in rows)
        batch = ImageBatch.read(rows, read)
        return batch._replace(bad={row: f"{self.table.filename(row)}: {why}" for row, why in batch.bad.items()})
