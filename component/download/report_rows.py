"""Appends outcomes to the report, from the main process and the worker processes alike."""

import contextlib
import csv
import io
import os
import threading

from component.download.outcome import Outcome
from component.ground.lock import exclusive
from component.ground.plain_text import one_line, spreadsheet_cell

COLUMNS = ["filename", "url", "status", "http_code", "reason", "bytes", "seconds"]  # attributes of an Outcome
MAX_REASON = 300  # characters


class ReportRows:
    """Appends rows to an existing report, from any thread and from several processes at once; a context manager."""

    def __init__(self, path: str):
        self.path = path
        self._lock = threading.Lock()
        self._file = open(path, "a+b", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        with self._lock:
            self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Write one outcome to the operating system, so that it survives if this process is killed; set its `offset`.

        Raises:
            OSError: the row is not in the report, not even in part.
        """
        row = {name: getattr(outcome, name) for name in COLUMNS}
        row["reason"] = one_line(outcome.reason[:MAX_REASON])  # may contain text from a server
        row["seconds"] = round(outcome.seconds, 3)
        line = io.StringIO()
        csv.writer(line).writerow(spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in row.values())
        outcome.offset = self._append(line.getvalue().encode(errors="backslashreplace"))

    def _append(self, line: bytes) -> int:
        """Write a line at the end of the file, and return its offset."""
        with self._lock, exclusive(self._file):
            begin, rest = self._file.seek(0, os.SEEK_END), line
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:  # disk full: a partial row would merge with the next one
                with contextlib.suppress(OSError):
                    self._file.truncate(begin)
                raise OSError(error.errno, error.strerror, self.path) from None
        return begin
