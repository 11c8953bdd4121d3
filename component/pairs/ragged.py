"""Rows of unequal length in one flat buffer."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class RaggedArray:
    """A list of integer rows of unequal length.

    A Python list of 1.4 million strings or token lists takes ten times the memory, and each forked worker ends up with
    a copy of it, because changing a reference count copies the page. These two arrays are shared or mapped.

    Args:
        flat: the values of all rows, concatenated.
        offsets: (rows + 1,) int64, the start of each row in `flat`, and the end of the last.

    Raises:
        ValueError: `offsets` does not end at the end of `flat`.
    """

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        if not len(offsets) or offsets[-1] != len(flat):
            raise ValueError(f"the offsets of the rows do not end at their {len(flat)} values")
        self._flat, self._offsets = flat, offsets

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], typecode: str) -> "RaggedArray":
        """Collect rows one by one; typecode as in the `array` module."""
        flat, offsets = array(typecode), array("q", [0])
        for row in rows:
            flat.extend(row)
            offsets.append(len(flat))
        return cls(np.frombuffer(flat, typecode) if flat else np.empty(0, typecode), np.frombuffer(offsets, np.int64))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self._flat[self._offsets[row] : self._offsets[row + 1]]

    def texts(self, rows: np.ndarray) -> list[str]:
        """(n,) rows of UTF-8 bytes → their texts."""
        flat, lengths = self.gather(rows)
        content, ends = flat.tobytes(), lengths.cumsum()
        starts = (ends - lengths).tolist()
        return [content[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=True)]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64, their lengths."""
        return self._offsets[rows + 1] - self._offsets[rows]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → their values, concatenated (sum of lengths,), and their lengths (n,)."""
        starts = self._offsets[rows]
        lengths = self._offsets[rows + 1] - starts
        shifts = starts - (lengths.cumsum() - lengths)  # from an index into the result to one into the buffer
        indices = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        return self._flat[indices], lengths


def join_rows(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the parts row by row: (values, lengths) of n rows each, as `RaggedArray.gather` returns them."""
    lengths = np.stack([lengths for _, lengths in parts], axis=1)
    starts = (lengths.ravel().cumsum() - lengths.ravel()).reshape(lengths.shape)
    joined = np.empty(lengths.sum(), np.result_type(*(values for values, _ in parts)))
    for (values, own), begin in zip(parts, starts.T, strict=True):
        joined[np.arange(len(values)) + np.repeat(begin - (own.cumsum() - own), own)] = values
    return joined, lengths.sum(axis=1)
