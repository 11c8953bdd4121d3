"""What became of each row: a CSV that is written as it goes and read back to resume."""

import csv
import os
from dataclasses import astuple, dataclass, fields, replace

import numpy as np

from component.download.url_table import NOTHING_FAILED, row_hashes
from component.pairs.table import read_pairs


@dataclass
class Outcome:
    """What became of one row.

    Attributes:
        status: `ok`, `failed`, or `skipped` (needs nothing; not in the report).
        reason: one word to count by, then perhaps a colon and details; empty when ok.
        bytes: size of the file written. seconds: network and decoding time, without waiting for a turn.
    """

    filename: str
    url: str
    status: str
    http_code: int | None = None
    reason: str = ""
    bytes: int = 0
    seconds: float = 0.0


COLUMNS = [field.name for field in fields(Outcome)]


def default_report(train_file: str, part: tuple[int, int]) -> str:
    """Where the report of the i-th of n parts is written, unless told otherwise: beside the table."""
    index, count = part
    name = "download_report.csv" if count == 1 else f"download_report.{index}-of-{count}.csv"
    return os.path.join(os.path.dirname(train_file), name)


class Report:
    """Appends to a report; a context manager. A later row on the same file name and URL overrules an earlier one.

    Raises:
        ValueError: the file exists and is something else, or another run is writing to it.
    """

    def __init__(self, path: str):
        self.path = path
        if os.path.exists(path) and os.path.getsize(path) > 0:
            next(read_pairs(path, COLUMNS, chunk_rows=1), None)
        self._file = open(path, "a+b")
        self._lock()
        self._cut_torn_line()
        self._text = open(self._file.fileno(), "a", newline="", encoding="utf-8", closefd=False)
        self._csv = csv.writer(self._text)
        if self._file.tell() == 0:
            self._csv.writerow(COLUMNS)
            self._text.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._text.close()
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Write one outcome through to the operating system, where a killed process cannot lose it."""
        self._csv.writerow(astuple(replace(outcome, seconds=round(outcome.seconds, 3))))
        self._text.flush()

    def failed_rows(self) -> np.ndarray:
        """Sorted `row_hashes` of all rows that failed once: 8 bytes each, however long the report.

        Those that succeeded later are among them; their file exists, which is looked at first.
        """
        hashes = [NOTHING_FAILED]
        for chunk in read_pairs(self.path, ("filename", "url", "status"), only_required=True, chunk_rows=20_000):
            hashes.append(row_hashes(chunk[chunk["status"] == "failed"]))
        return np.unique(np.concatenate(hashes))

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"{self.path} is being written by another run. Wait for it, or share the work with --shard 1/2 and "
                "--shard 2/2."
            ) from None

    def _cut_torn_line(self) -> None:
        """Drop a last line that a crash left unfinished; the row is simply done again."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(size - 65536, 0))
        tail = self._file.read()
        if tail and not tail.endswith(b"\n"):
            self._file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)
