"""The ledger of the pictures that a training or an evaluation has left out."""

import logging
from collections.abc import Iterable, Mapping

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)


class BadImages:
    """Counts the bad pictures of a split over all processes, and names each of a file in the log once.

    Args:
        splits: words for what is counted apart.
    """

    def __init__(self, *splits: str):
        self._rows: dict[str, set[int]] = {split: set() for split in splits}
        self._named: set[tuple[str, int]] = set()
        self._found: list[tuple[str, int, str]] = []  # by this process, since the last `share`

    def note(self, split: str, file: str, bad_images: Mapping[int, str]) -> None:
        """Count and name some images of a file, given as row → reason."""
        for row, reason in bad_images.items():
            self._rows[split].add(row)
            if self._name(file, row, reason):
                self._found.append((file, row, reason))

    def share(self) -> None:
        """Name what the other processes found, as the first one alone writes to the log. All call it together."""
        found, self._found = gather_object(self._found), []
        for file, row, reason in found:
            self._name(file, row, reason)

    def _name(self, file: str, row: int, reason: str) -> bool:
        """Whether it had not been named before."""
        is_new = (file, row) not in self._named
        if is_new:
            self._named.add((file, row))
            logger.warning("left out of %s: %s", file, reason)
        return is_new

    def count(self, split: str, rows: Iterable[int]) -> None:
        """Count rows that were named before the run was resumed."""
        self._rows[split].update(rows)

    def forget(self, split: str) -> None:
        """Count anew; what was named is not named again."""
        self._rows[split].clear()

    def rows(self, split: str) -> list[int]:
        """Those of all processes, which call it together."""
        return sorted(set(gather_object(list(self._rows[split]))))
