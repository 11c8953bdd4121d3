"""The one form in which a batch of images travels: the rows that have a good one, their tensors, and the bad ones."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from component.image.reading import BadImageError


class ImageBatch(NamedTuple):
    """The images of some rows.

    rows: (n,) int64, the rows whose image is good.
    columns: name → tensor or array with one entry per good row, such as pixels (n, H, W, 3) uint8; {} when n is 0.
    bad: row → reason, of the other rows.
    """

    rows: np.ndarray
    columns: dict[str, Tensor | np.ndarray]
    bad: dict[int, str]

    @property
    def total(self) -> int:
        """Number of images, good and bad."""
        return len(self.rows) + len(self.bad)

    @classmethod
    def read(cls, rows: Iterable[int], read: Callable[[int], np.ndarray]) -> "ImageBatch":
        """Read the image of each row into the column pixels.

        Args:
            read: returns the (H, W, 3) uint8 pixels of a row; a BadImageError makes the row a bad one, other errors
                are raised.
        """
        good, images, bad = [], [], {}
        for row in map(int, rows):
            try:
                images.append(read(row))
                good.append(row)
            except BadImageError as error:
                bad[row] = str(error)
        return cls(np.array(good, np.int64), {"pixels": torch.from_numpy(np.stack(images))} if good else {}, bad)

    def keep(self, is_good: np.ndarray, reason: Callable[[int], str]) -> "ImageBatch":
        """The batch with only the rows where `is_good` (n,) holds; `reason(row)` says why another is bad."""
        if is_good.all():
            return self
        bad = {row: reason(row) for row in self.rows[~is_good].tolist()}
        columns = {name: column[is_good] for name, column in self.columns.items()} if is_good.any() else {}
        return ImageBatch(self.rows[is_good], columns, self.bad | bad)
