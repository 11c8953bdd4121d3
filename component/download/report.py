"""The report: a CSV with the outcome of each row, written during the download and read again to resume."""

import contextlib
import csv
import io
import os
from array import array

import numpy as np

from component.download.outcome import Outcome
from component.download.report_rows import COLUMNS, ReportRows
from component.download.rows import NO_ROWS, row_hashes
from component.ground.lock import exclusive, sole_writer
from component.ground.plain_text import cell_text
from component.ground.remote import is_remote
from component.pairs.table import read_table
from component.pairs.table_files import expand

HEADER = (",".join(COLUMNS) + "\r\n").encode()


def default_report(train_file: str, part: tuple[int, int]) -> str:
    """The default path of the report of the i-th of n parts: next to the table.

    Where `train_file` is a folder, or a pattern of several files, it is next to that folder, or to theirs: a report in
    it would be taken for a file of the table.

    Raises:
        ValueError: the table is remote.
    """
    if is_remote(train_file):
        raise ValueError(f"{train_file} is not on this machine, and the report must be: name it by --report.")
    index, count = part
    name = "download_report.csv" if count == 1 else f"download_report.{index}-of-{count}.csv"
    folder = os.path.dirname(train_file.rstrip(os.sep))
    if expand(train_file) != [train_file]:
        folder = os.path.join(folder, os.pardir)
    return os.path.normpath(os.path.join(folder, name))


class Report(ReportRows):
    """The report of a run, created or continued. Of several rows for one file and URL the last counts.

    Raises:
        ValueError: the file exists and is something else, or another run is writing to it.
    """

    def __init__(self, path: str):
        self._digests, self._offsets = array("Q"), array("Q")  # of this run's files: digest, and offset of the row
        with contextlib.ExitStack() as stack:
            stack.enter_context(sole_writer(path))
            super().__init__(path)
            stack.enter_context(self._file)
            with exclusive(self._file):  # against processes that a killed run left for a moment
                end = whole_rows(path)
                self._file.truncate(end)
            if not end:
                self._append(HEADER)
            self._stack = stack.pop_all()

    def __exit__(self, *exc_info):
        with self._lock:
            self._stack.close()

    def count_content(self, outcome: Outcome) -> None:
        """Take note of a file that this run wrote, for `same_bytes`."""
        self._digests.append(int.from_bytes(outcome.digest, "big"))
        self._offsets.append(outcome.offset)

    def rows_that(self, *statuses: str) -> np.ndarray:
        """Sorted `row_hashes`, of 8 bytes, of all rows that ended with one of these statuses.

        Failed rows may have succeeded later; the caller first checks whether their file exists.
        """
        hashes = [NO_ROWS]
        for chunk in read_table(self.path, ("filename", "url", "status"), only_required=True, chunk_rows=20_000):
            hashes.append(row_hashes(chunk[chunk["status"].isin(statuses)].map(cell_text)))
        return np.unique(np.concatenate(hashes))

    def same_bytes(self, least: int = 3, most_groups: int = 5, most_names: int = 3) -> list[tuple[int, list[str]]]:
        """(number of files, first names) for each content that at least `least` files of this run share."""
        digests, offsets = np.array(self._digests), np.array(self._offsets)
        found, counts = np.unique(digests, return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:most_groups]
        groups = [(int(counts[i]), offsets[digests == found[i]][:most_names]) for i in largest if counts[i] >= least]
        return [(count, [self._name_at(offset) for offset in first]) for count, first in groups]

    def _name_at(self, offset: int) -> str:
        self._file.seek(offset)
        row = self._file.read(2**16).decode(errors="replace")
        return cell_text(next(csv.reader(io.StringIO(row, newline="")))[0])


def whole_rows(path: str) -> int:
    """The length of a report up to its last complete row; a row that a crash truncated is downloaded again.

    A row ends at a line break outside of quotes. Quotes within a cell are doubled, so an odd number of them means
    that a cell is open.

    Raises:
        ValueError: this is not a report.
    """
    with open(path, "rb") as file:
        header = file.readline(2**16)
        if header != HEADER and HEADER.startswith(header):  # nothing yet, or a torn first line
            return 0
        found = next(csv.reader([header.decode("utf-8-sig", "replace")]), [])
        if found[: len(COLUMNS)] != COLUMNS:
            raise ValueError(
                f"{path} is not a download report: its columns are {', '.join(found)}, expected {', '.join(COLUMNS)}."
            )
        whole = offset = len(header)
        quotes = 0
        for line in file:
            offset += len(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = offset
    return whole
