"""Bad images that training and evaluation left out: counted, and named once in the log."""

import logging
from collections.abc import Iterable, Mapping

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)


class BadImages:
    """Counts the bad images of each split over all processes, and logs each image of a file once.

    Args:
        splits: names under which images are counted separately.
    """

    def __init__(self, *splits: str):
        self._rows: dict[str, set[int]] = {split: set() for split in splits}
        self._named: set[tuple[str, int]] = set()
        self._found: list[tuple[str, int, str]] = []  # by this process since the last `share`

    def note(self, split: str, file: str, bad_images: Mapping[int, str]) -> None:
        """Count and name some images of a file, given as row → reason."""
        for row, reason in bad_images.items():
            self._rows[split].add(row)
            if self._name(file, row, reason):
                self._found.append((file, row, reason))

    def share(self) -> None:
        """Log what the other processes found, because only the first one writes the log. All call it together."""
        found, self._found = gather_object(self._found), []
        for file, row, reason in found:
            self._name(file, row, reason)

    def _name(self, file: str, row: int, reason: str) -> bool:
        """Log the image and return True, unless it was logged before."""
        is_new = (file, row) not in self._named
        if is_new:
            self._named.add((file, row))
            logger.warning("left out of %s: %s", file, reason)
        return is_new

    def count(self, split: str, rows: Iterable[int]) -> None:
        """Count rows that were named before the run was resumed."""
        self._rows[split].update(rows)

    def forget(self, split: str) -> None:
        """Reset the count of a split. Images that were logged before are not logged again."""
        self._rows[split].clear()

    def rows(self, split: str) -> list[int]:
        """Those of all processes, which call it together."""
        return sorted(set(gather_object(list(self._rows[split]))))
