"""The rows of a download table, each with what is known of it before any request. 16 bytes of memory a row."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from component.download.address import mend_url
from component.pairs.paths import normal_name
from component.pairs.table import read_pairs

CHUNK_ROWS = 20_000
NO_ROWS = np.empty(0, dtype=np.uint64)


class Row(NamedTuple):
    """One row of the table, its cells as they are written there.

    `kind`: "new"; "repeated" (an earlier row has the same file and URL: another caption of one image); "duplicate"
    (an earlier row has the file with another URL). `failed_before`: an earlier run gave it up. `whole_before`: an
    earlier run wrote its file, or found it whole.
    """

    filename: str
    url: str
    kind: str
    failed_before: bool
    whole_before: bool


def read_rows(
    train_file: str, part: tuple[int, int], failed_before: np.ndarray = NO_ROWS, whole_before: np.ndarray = NO_ROWS
) -> Iterator[Row]:
    """Yield the rows of one part of a table in order, each with what is known of it.

    Names are normalised and URLs mended before they are compared: `./d//x.jpg` is `d/x.jpg`.

    Args:
        train_file: CSV with the columns `url` and `filename`.
        part: (i, n), i from 1 to n. Rows are dealt by the hash of the file name, so rows that share a name meet in
            one part and no two machines ever write the same file.
        failed_before, whole_before: sorted `row_hashes` of the rows known as such.

    Raises:
        ValueError, FileNotFoundError: as `read_pairs`.
    """
    first = _FirstUrls()
    for chunk in _chunks(train_file, part):
        names, urls = _name_hashes(chunk), _hashes(chunk["url"].map(mend_url))
        seen, same_url = first.compare(names, urls)
        kind = np.where(seen, np.where(same_url, "repeated", "duplicate"), "new")
        hashes = row_hashes(chunk)
        known = [_look_up(hashes, ordered)[1].tolist() for ordered in (failed_before, whole_before)]
        yield from map(Row, chunk["filename"], chunk["url"], kind.tolist(), *known)


def count_rows(train_file: str, part: tuple[int, int]) -> int:
    """Number of rows of a part. Reads the whole table, so that a malformed row shows now and not in the night."""
    return sum(len(chunk) for chunk in _chunks(train_file, part))


def row_hashes(table: pd.DataFrame) -> np.ndarray:
    """(rows,) uint64, by file and URL."""
    return _hashes(table["filename"].map(normal_name) + "\0" + table["url"].map(mend_url))


def _chunks(train_file: str, part: tuple[int, int]) -> Iterator[pd.DataFrame]:
    index, count = part
    for chunk in read_pairs(train_file, ("url", "filename"), only_required=True, chunk_rows=CHUNK_ROWS):
        if count > 1:
            chunk = chunk[_name_hashes(chunk) % count == index - 1]
        yield chunk


def _name_hashes(table: pd.DataFrame) -> np.ndarray:
    return _hashes(table["filename"].map(normal_name))


def _hashes(column: pd.Series) -> np.ndarray:
    return pd.util.hash_array(column.to_numpy(dtype=object), categorize=False)


def _look_up(values: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value its place in a sorted array, and whether it stands there."""
    place = np.searchsorted(ordered, values)
    found = np.zeros(len(values), dtype=bool)
    inside = place < len(ordered)
    found[inside] = ordered[place[inside]] == values[inside]
    return place, found


class _FirstUrls:
    """Remembers with which URL each file name came first: two arrays of hashes, sorted by name."""

    def __init__(self):
        self._names = np.empty(0, dtype=np.uint64)
        self._urls = np.empty(0, dtype=np.uint64)

    def compare(self, names: np.ndarray, urls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two boolean arrays, one value per row: the name was seen before; its first URL is the one of this row."""
        unique, first_row, which = np.unique(names, return_index=True, return_inverse=True)
        place, known = _look_up(unique, self._names)
        first_url = urls[first_row]
        first_url[known] = self._urls[place[known]]
        self._names = np.insert(self._names, place[~known], unique[~known])
        self._urls = np.insert(self._urls, place[~known], first_url[~known])

        seen = known[which] | (first_row[which] != np.arange(len(names)))
        return seen, urls == first_url[which]
