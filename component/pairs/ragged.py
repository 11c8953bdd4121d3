"""Rows of unequal length in one flat buffer."""

from array import array
from collections.abc import Iterable

import numpy as np


class RaggedArray:
    """A list of integer rows of unequal length that can only grow at its end.

    A Python list of 1.4 million strings or token lists takes ten times the memory, and every forked worker ends up
    with a copy, because touching a reference count copies the page. This buffer is shared.

    Args:
        typecode: of the `array` module, e.g. "H" for token ids, "B" for UTF-8 bytes.
    """

    def __init__(self, typecode: str):
        self._flat = array(typecode)
        self._offsets = array("q", [0])

    def append(self, row: Iterable[int]) -> None:
        self._flat.extend(row)
        self._offsets.append(len(self._flat))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self._flat[self._offsets[row] : self._offsets[row + 1]])

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64 numbers of their values."""
        offsets = np.frombuffer(self._offsets, np.int64)
        return offsets[rows + 1] - offsets[rows]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → their values one after the other, (sum of lengths,), and their lengths, (n,)."""
        offsets = np.frombuffer(self._offsets, np.int64)
        starts = offsets[rows]
        lengths = offsets[rows + 1] - starts
        shifts = starts - (lengths.cumsum() - lengths)  # from a value's place in the result to its place in the buffer
        places = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        return np.frombuffer(self._flat, self._flat.typecode)[places], lengths
