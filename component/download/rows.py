"""The rows of a download, read once, and what is known about each before any request. 24 bytes of memory per row."""

import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from component.download.address import mend_url
from component.download.folder_names import STRICTEST, NameRules
from component.pairs.paths import normal_name
from component.pairs.table import has_filenames, read_table
from component.pairs.table_files import pair_files

CHUNK_ROWS = 20_000
NO_ROWS = np.empty(0, dtype=np.uint64)


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        number: from 1, without headers, over all files that the part reads.
        filename, url: the cells as written.
        mended_url: as `mend_url` gives it.
        first: number of the first row with the same file; equal to `number` if that is this row.
        has_first_url: that row has the same URL; this is another caption of one image.
        failed_before: an earlier run gave up on the row.
        whole_before: an earlier run wrote its file, or found it good.
    """

    number: int
    filename: str
    url: str
    mended_url: str
    first: int
    has_first_url: bool
    failed_before: bool
    whole_before: bool


class Rows:
    """The rows of one part of a table; a context manager.

    The constructor reads the table once, so that a malformed row is reported at the start. The rows of the part are
    kept in an unnamed temporary file, which takes about as much space as the report.

    Names are normalised and URLs repaired before they are compared: `./d//x.jpg` equals `d/x.jpg`, and names are equal
    if they refer to the same file in `image_path`.

    Args:
        train_file: table with the columns `url` and `filename`, as `read_table` reads it; or several, as a pattern.
        image_path: folder of the images, made if it is missing.
        part: (i, n), i from 1 to n. If the table has n files or more, and their file names are made from the URLs, a
            part is every n-th file, and only those are read. Otherwise rows are assigned by the hash of the file name,
            so that rows with the same name are in one part, and two machines never write the same file.
        columns: as for `read_table`.
        temporary_path: folder for the temporary file; None: the system's.

    Attributes:
        files: the files of the table.

    Raises:
        ValueError, FileNotFoundError: as `read_table`.
    """

    def __init__(
        self,
        train_file: str,
        image_path: str,
        part: tuple[int, int] = (1, 1),
        columns: Mapping[str, str] | None = None,
        temporary_path: str | None = None,
    ):
        self.files = pair_files(train_file)
        # Reads the head of each: a mistyped name or column is reported before anything is written.
        self._have_filenames = [has_filenames(path, columns) for path in self.files]
        os.makedirs(image_path, exist_ok=True)
        self.image_path, self.part = image_path, part
        self.name_rules = NameRules.of(image_path)
        self._count, self._first = 0, _FirstRows()
        self._file = tempfile.TemporaryFile(dir=temporary_path)
        try:
            for chunk in self._chunks(columns):
                self._add(chunk)
        except BaseException:
            self._file.close()
            raise
        del self._first

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def rows(self, failed_before: np.ndarray = NO_ROWS, whole_before: np.ndarray = NO_ROWS) -> Iterator[Row]:
        """Yield the rows in order.

        Args:
            failed_before, whole_before: sorted `row_hashes` of the rows that an earlier run ended so.
        """
        self._file.seek(0)
        left = self._count
        while left:
            columns, hashes = pickle.load(self._file)
            known = [_look_up(hashes, ordered)[1].tolist() for ordered in (failed_before, whole_before)]
            yield from map(Row, *columns, *known)
            left -= len(hashes)

    def _chunks(self, columns: Mapping[str, str] | None) -> Iterator[pd.DataFrame]:
        """The rows of the part, with their numbers as index."""
        number, (index, count) = 1, self.part
        # Equal URLs in two files have equal names, and the machine that comes second finds the image there.
        by_file = 1 < count <= len(self.files) and not any(self._have_filenames)
        for path in self.files[index - 1 :: count] if by_file else self.files:
            for chunk in read_table(path, ("url", "filename"), True, columns, CHUNK_ROWS):
                chunk.index = range(number, number + len(chunk))
                number += len(chunk)
                if count > 1 and not by_file:
                    keys = map(STRICTEST.key, map(normal_name, chunk["filename"]))
                    chunk = chunk[_hashes(keys) % count == index - 1]
                yield chunk

    def _add(self, chunk: pd.DataFrame) -> None:
        numbers, filenames, urls = chunk.index.to_numpy(), chunk["filename"].tolist(), chunk["url"].tolist()
        names, mended = list(map(normal_name, filenames)), list(map(mend_url, urls))
        first_rows = self._first.find(_hashes(map(self.name_rules.key, names)), _hashes(mended), numbers)
        columns = [numbers.tolist(), filenames, urls, mended, *first_rows]
        try:
            pickle.dump((columns, _pair_hashes(names, mended)), self._file)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"no room for the rows of the table: {error.strerror}") from None
        self._count += len(chunk)


def row_hashes(table: pd.DataFrame) -> np.ndarray:
    """(rows,) uint64, by the columns `filename` and `url`."""
    return _pair_hashes(map(normal_name, table["filename"]), map(mend_url, table["url"]))


def _pair_hashes(names: Iterable[str], urls: Iterable[str]) -> np.ndarray:
    return _hashes(map("\0".join, zip(names, urls, strict=True)))


def _hashes(texts: Iterable[str]) -> np.ndarray:
    return pd.util.hash_array(np.array(list(texts), dtype=object), categorize=False)


def _look_up(values: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value: its position in a sorted array, and whether the array contains it."""
    position = np.searchsorted(ordered, values)
    found = np.zeros(len(values), dtype=bool)
    inside = position < len(ordered)
    found[inside] = ordered[position[inside]] == values[inside]
    return position, found


class _FirstRows:
    """The first row of each file name, and the URL of that row: three arrays, sorted by name."""

    def __init__(self):
        self._names, self._urls = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
        self._numbers = np.empty(0, dtype=np.int64)

    def find(self, names: np.ndarray, urls: np.ndarray, numbers: np.ndarray) -> tuple[list[int], list[bool]]:
        """For more rows (hashes and numbers): the first row with each name, and whether it has the same URL."""
        unique, index, which = np.unique(names, return_index=True, return_inverse=True)
        position, known = _look_up(unique, self._names)
        first_urls, first_numbers = urls[index], numbers[index]
        first_urls[known], first_numbers[known] = self._urls[position[known]], self._numbers[position[known]]
        new = ~known
        self._names = np.insert(self._names, position[new], unique[new])
        self._urls = np.insert(self._urls, position[new], first_urls[new])
        self._numbers = np.insert(self._numbers, position[new], first_numbers[new])
        return first_numbers[which].tolist(), (urls == first_urls[which]).tolist()
