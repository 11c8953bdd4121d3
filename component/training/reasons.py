"""Why images of a table have no feature."""

from array import array
from bisect import bisect_left

import numpy as np

from component.image.reading import SINCE_INDEXED


class Reasons:
    """Numbers of items that have no feature, and why, about 100 bytes each.

    Attributes:
        lost: number of those whose shard or table has changed.
    """

    def __init__(self):
        self._numbers, self._text, self._ends, self.lost = array("q"), bytearray(), array("q"), 0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, reason: str) -> None:
        """Numbers must rise."""
        self._numbers.append(number)
        self._text += reason.encode(errors="replace")
        self._ends.append(len(self._text))
        self.lost += reason.endswith(SINCE_INDEXED)

    @property
    def first(self) -> tuple[int, str] | None:
        return (self._numbers[0], self._text[: self._ends[0]].decode()) if self._numbers else None

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those with numbers from `start` to below `stop`: numbers (n,), UTF-8 of all reasons, lengths (n,)."""
        first, last = bisect_left(self._numbers, start), bisect_left(self._numbers, stop)
        ends = np.array(self._ends[first:last], np.int64)
        begin = self._ends[first - 1] if first else 0
        text = np.frombuffer(bytes(self._text[begin : ends[-1] if len(ends) else begin]), np.uint8)
        return np.array(self._numbers[first:last], np.int64), text, np.diff(ends, prepend=begin)
