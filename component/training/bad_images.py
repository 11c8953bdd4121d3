"""Images that training and evaluation leave out: counted, the first ones named in the log, and all in a file."""

import base64
import csv
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby, islice
from operator import itemgetter

from accelerate.utils import gather_object

from component.ground.files import new_file
from component.ground.plain_text import one_line, spreadsheet_cell
from component.image.reading import SINCE_INDEXED
from component.training.interruption import RunFailed

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out_{}.csv"  # in output_dir, with the split
NAMED = 20  # in the log, of each file
MOST_LOST = 0.01  # of the images of a file, because a shard or a table was replaced or removed while it was in use


def require_few_lost(file: str, lost: int, total: int) -> None:
    """Raise RunFailed if many images of a file were lost while it was in use."""
    if lost > MOST_LOST * total:
        raise RunFailed(
            f"{lost:,} of {total:,} images of {file} were lost, more than {MOST_LOST:.0%}, because shards or tables "
            "were replaced or removed while the run used them. Put them back, then start again."
        )


class RowSet:
    """A set of rows as a bitmap: a bit for each row up to the highest."""

    def __init__(self, bits: bytes = b""):
        self._bits = bytearray(bits)

    def add(self, row: int) -> bool:
        """Whether the row is new."""
        byte, bit = row >> 3, 1 << (row & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        is_new = not self._bits[byte] & bit
        self._bits[byte] |= bit
        return is_new

    @classmethod
    def union(cls, sets: Iterable["RowSet"]) -> "RowSet":
        bits = 0
        for rows in sets:
            bits |= int.from_bytes(rows._bits, "little")
        return cls(bits.to_bytes((bits.bit_length() + 7) // 8, "little"))

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def to_text(self) -> str:
        return base64.b85encode(zlib.compress(self._bits)).decode()

    @classmethod
    def from_text(cls, text: str) -> "RowSet":
        return cls(zlib.decompress(base64.b85decode(text)))


class BadImages:
    """Counts the bad images of each split over all processes. Of a file, the log names the first ones, and then says
    how many there are each time that their number has doubled; all are in `left_out_<split>.csv`.

    Args:
        folder: output_dir, in which the first process writes.
        splits: names under which images are counted separately.
    """

    def __init__(self, folder: str, is_writer: bool, *splits: str):
        self._folder, self._is_writer = folder, is_writer
        self._rows = {split: RowSet() for split in splits}
        self._said: dict[str, RowSet] = {}  # file → rows
        self._counts: Counter[str] = Counter()  # file → number of these
        self._told: dict[str, int] = {}  # file → number in the last line of the log
        self._lost: Counter[str] = Counter()  # file → number
        self._found: list[tuple[str, str, int, str]] = []  # by this process since the last `share`

    def know(self, split: str, file: str, bad_images: Mapping[int, str]) -> None:
        """Take the images that were left out from the start, row → reason, the same in all processes."""
        for row in bad_images:
            self._rows[split].add(row)
        if file in self._said or not bad_images:
            return
        self._said[file] = RowSet()
        self._counts[file] = len(bad_images)
        for reason in islice(bad_images.values(), NAMED):
            logger.warning("left out of %s: %s", file, reason)
        if self._is_writer:
            os.makedirs(self._folder, exist_ok=True)
            with new_file(self._path(split), newline="") as table:
                self._write(table, bad_images.items())
        self._tell(split, file)

    def note(self, split: str, file: str, bad_images: Mapping[int, str]) -> None:
        """Count and name some images of a file, given as row → reason."""
        for row, reason in bad_images.items():
            self._rows[split].add(row)
            if self._say(file, row, reason):
                self._found.append((split, file, row, reason))

    def share(self) -> None:
        """Log and write what all processes found. All call it together."""
        found, self._found = gather_object(self._found), []
        for (split, file), group in groupby(found, key=itemgetter(0, 1)):
            entries = [(row, reason) for *_, row, reason in group]
            for row, reason in entries:
                self._say(file, row, reason)
                self._lost[file] += reason.endswith(SINCE_INDEXED)
            if self._is_writer:
                is_new = not os.path.exists(self._path(split))
                with open(self._path(split), "a", encoding="utf-8", newline="") as table:
                    self._write(table, entries, is_new)
            self._tell(split, file)

    def require_few_lost(self, file: str, total: int) -> None:
        """Raise RunFailed if many of the images were lost while the run used them, see `require_few_lost`."""
        require_few_lost(file, self._lost[file], total)

    def restore(self, split: str, rows: str | list[int]) -> None:
        """Count rows that were named before the run was resumed, see `to_text`; a list by an older version."""
        if isinstance(rows, str):
            self._rows[split] = RowSet.union([self._rows[split], RowSet.from_text(rows)])
        else:
            for row in rows:
                self._rows[split].add(row)

    def to_text(self, split: str) -> str:
        """The rows of all processes, which call this together, for a checkpoint."""
        return RowSet.union(gather_object([self._rows[split]])).to_text()

    def forget(self, split: str) -> None:
        """Reset the count of a split. Images that were logged before are not logged again."""
        self._rows[split] = RowSet()

    def count(self, split: str) -> int:
        """Number of images left out by all processes, which call this together."""
        return len(RowSet.union(gather_object([self._rows[split]])))

    def _say(self, file: str, row: int, reason: str) -> bool:
        """Count an image, and name it if it is one of the first. False if it was counted before."""
        if not self._said.setdefault(file, RowSet()).add(row):
            return False
        self._counts[file] += 1
        if self._counts[file] <= NAMED:
            logger.warning("left out of %s: %s", file, reason)
        return True

    def _tell(self, split: str, file: str) -> None:
        if self._counts[file] > NAMED and self._counts[file] >= 2 * self._told.get(file, 0):
            self._told[file] = self._counts[file]
            logger.warning("left out of %s: %d images so far, see %s", file, self._counts[file], self._path(split))

    def _path(self, split: str) -> str:
        return os.path.join(self._folder, LEFT_OUT.format(split))

    @staticmethod
    def _write(table, entries: Iterable[tuple[int, str]], has_head: bool = True) -> None:
        writer = csv.writer(table, lineterminator="\n")
        if has_head:
            writer.writerow(("row", "reason"))
        writer.writerows((row, spreadsheet_cell(one_line(reason))) for row, reason in entries)
