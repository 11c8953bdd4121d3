"""The rows of a download table, each with what is known of it before any request. 16 bytes of memory a row."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from component.pairs.table import read_pairs

CHUNK_ROWS = 20_000
NOTHING_FAILED = np.empty(0, dtype=np.uint64)


class Row(NamedTuple):
    """One row of the table.

    `kind`: "new"; "repeated" (an earlier row has the same file name and URL: another caption of one picture);
    "duplicate" (an earlier row has the file name with another URL). `failed_before`: an earlier run gave it up.
    """

    filename: str
    url: str
    kind: str
    failed_before: bool


def read_rows(train_file: str, shard: tuple[int, int], failed_before: np.ndarray) -> Iterator[Row]:
    """Yield the rows of one shard in order, each with what is known of it.

    Args:
        train_file: CSV with the columns `url` and `filename`.
        shard: (i, n), i from 1 to n. Rows are dealt by the hash of the file name, so rows that share a name meet in
            one shard and no two machines ever write the same file.
        failed_before: sorted `row_hashes` of the rows known as failed.

    Raises:
        ValueError, FileNotFoundError: as `read_pairs`.
    """
    first = _FirstUrls()
    for chunk in _chunks(train_file, shard):
        names, urls = _hashes(chunk["filename"]), _hashes(chunk["url"])
        seen, same_url = first.compare(names, urls)
        kind = np.where(seen, np.where(same_url, "repeated", "duplicate"), "new")
        _, failed = _look_up(row_hashes(chunk), failed_before)
        yield from map(Row, chunk["filename"], chunk["url"], kind.tolist(), failed.tolist())


def count_rows(train_file: str, shard: tuple[int, int]) -> int:
    """Number of rows of a shard. Reads the whole table, so that a malformed row shows now and not in the night."""
    return sum(len(chunk) for chunk in _chunks(train_file, shard))


def row_hashes(table: pd.DataFrame) -> np.ndarray:
    """(rows,) uint64, by file name and URL."""
    return _hashes(table["filename"] + "\0" + table["url"].str.strip())


def _chunks(train_file: str, shard: tuple[int, int]) -> Iterator[pd.DataFrame]:
    index, count = shard
    for chunk in read_pairs(train_file, ("url", "filename"), only_required=True, chunk_rows=CHUNK_ROWS):
        if count > 1:
            chunk = chunk[_hashes(chunk["filename"]) % count == index - 1]
        yield chunk


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
