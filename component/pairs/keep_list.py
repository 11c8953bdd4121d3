"""Keep-lists: for each pair of some files, whether it is kept. Nothing is repacked to leave pairs out.

A keep-list is a Parquet table, or several, with the columns

- `file`: a table or shard, by its path when it was judged;
- `digest`: of its pairs, see `PairsDigest`;
- `row`: the number of the pair in that file, from 0;
- `keep`: true or false.

It has one row for each pair of each file that was judged, sorted by file and row.
"""

import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from component.pairs.image_stores import ImageStore, key_of
from component.pairs.parquet import import_pyarrow, open_parquet
from component.pairs.shards import index_shard
from component.pairs.table import read_table
from component.pairs.table_files import Kind, is_shard, kind_of, pair_files

logger = logging.getLogger(__name__)

SCHEMA = [("file", "string"), ("digest", "string"), ("row", "int64"), ("keep", "bool")]  # in pyarrow's names
COLUMNS = [name for name, _ in SCHEMA]
BATCH_ROWS = 2**18


class PairsDigest:
    """Digest of the keys and texts of a file's pairs, in order. A copy of the file has the same one."""

    def __init__(self):
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, store: ImageStore, chunk: pd.DataFrame) -> None:
        """Take the next pairs, as `read_pair_files` yields them."""
        keys = (key_of(store, locator) for locator in chunk["filename"].tolist())
        pairs = zip(keys, chunk["text"].tolist(), strict=True)
        self._digest.update(
            "".join(f"{cell}\0" for cell in itertools.chain.from_iterable(pairs)).encode(errors="surrogatepass")
        )

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass
class _Entry:
    """One file of the list; spans are (path, row group, start, stop) of its rows in the list."""

    file: str
    digest: str
    rows: int = 0
    num_kept: int = 0
    spans: list[tuple[str, int, int, int]] = field(default_factory=list)


class KeepList:
    """Which pairs of which files are kept. Only one row group of the list is in memory at a time.

    Files are found by the ends of their paths, so data may move: by the name, and by as many folders as tell it from
    another file of the list with the same name.

    Args:
        path: Parquet file, a folder of them, or a pattern.

    Attributes:
        paths: the Parquet files.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not a keep-list.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, path: str):
        self.path, self.paths = path, pair_files(path)
        self._group = self._keep = None
        self._by_name: dict[str, list[_Entry]] = {}
        for entry in self._read_entries():
            self._by_name.setdefault(os.path.basename(entry.file), []).append(entry)

    def counts(self, files: str | Sequence[str]) -> tuple[int, int]:
        """How many pairs of some files are kept, and how many are left out.

        Raises:
            ValueError: a file is not in the list.
        """
        entries = list(map(self._entry, pair_files(files)))
        kept = sum(entry.num_kept for entry in entries)
        return kept, sum(entry.rows for entry in entries) - kept

    def filtered(
        self, path: str, chunks: Iterator[tuple[ImageStore, pd.DataFrame]]
    ) -> Iterator[tuple[ImageStore, pd.DataFrame]]:
        """Yield the pairs of one file without those that are not kept.

        Args:
            chunks: all pairs of the file, as `read_pair_files` yields them.

        Raises:
            ValueError: the file is not in the list, or, at the end, its pairs are not those that were judged.
        """
        entry = self._entry(path)
        keep, digest, start = self._mask(entry), PairsDigest(), 0
        for store, chunk in chunks:
            if "query" in chunk:
                raise ValueError(f"{path} is a labelled data set; a keep-list is for tables and shards.")
            digest.update(store, chunk)
            stop = start + len(chunk)
            if stop <= entry.rows:
                yield store, chunk[keep[start:stop]]
            start = stop
        if (start, digest.hexdigest()) != (entry.rows, entry.digest):
            what = f"{entry.rows} pairs, and now it has {start}" if start != entry.rows else "other keys or texts"
            raise ValueError(
                f"{path} is not the file that the keep-list {self.path} was made of ({entry.file} had {what}). "
                "Judge it again and make a new keep-list."
            )

    def _mask(self, entry: _Entry) -> np.ndarray:
        parts = [self._keep_column(path, group)[start:stop] for path, group, start, stop in entry.spans]
        return np.concatenate(parts) if parts else np.empty(0, bool)

    def _keep_column(self, path: str, group: int) -> np.ndarray:
        if self._group != (path, group):  # the next file's rows are in the same group, or in the next one
            with open_parquet(path) as file:
                column = file.read_row_group(group, columns=["keep"]).column("keep").combine_chunks()
            self._group, self._keep = (path, group), column.fill_null(False).to_numpy(zero_copy_only=False)
        return self._keep

    def _entry(self, path: str) -> _Entry:
        alike = self._by_name.get(os.path.basename(path), [])
        most = max((_common_end(path, entry.file) for entry in alike), default=0)
        found = [entry for entry in alike if _common_end(path, entry.file) == most]
        if not found and _is_empty(path):
            return _Entry(path, PairsDigest().hexdigest())  # no row of the list can name a file without pairs
        if len(found) != 1:
            why = "several files of that name, and none in the same folder" if found else "no file of that name"
            raise ValueError(f"{path} was not judged: the keep-list {self.path} has {why}.")
        return found[0]

    def _read_entries(self) -> list[_Entry]:
        entries: list[_Entry] = []
        for path in self.paths:
            for group, first, frame in _read(path):
                starts = _starts_of_runs(frame[["file", "digest"]])
                for start, stop in itertools.pairwise([*starts, len(frame)]):
                    file, digest = frame["file"].iloc[start], frame["digest"].iloc[start]
                    if not entries or (entries[-1].file, entries[-1].digest) != (file, digest):
                        entries.append(_Entry(file, digest))
                    entry, run = entries[-1], frame.iloc[start:stop]
                    if not np.array_equal(run["row"], np.arange(entry.rows, entry.rows + len(run))):
                        self._raise_unsorted(file)
                    entry.rows += len(run)
                    entry.num_kept += int(run["keep"].sum())
                    entry.spans.append((path, group, first + start, first + stop))
        for file, count in Counter(entry.file for entry in entries).items():
            if count > 1:
                self._raise_unsorted(file)
        return entries

    def _raise_unsorted(self, file: str) -> None:
        raise ValueError(
            f"the keep-list {self.path} does not have the rows 0, 1, 2, … of {file} one after the other. Write "
            "all rows that were judged, once, with ORDER BY file, row."
        )


def open_keep_list(path: str | None, files: str | Sequence[str]) -> KeepList | None:
    """The keep-list of some files; what it keeps and leaves out is logged. None without a path.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `KeepList`, and if a file is not in it.
    """
    if not path:
        return None
    keep_list = KeepList(path)
    num_kept, num_left_out = keep_list.counts(files)
    logger.warning("%s keeps %d pairs and leaves out %d", path, num_kept, num_left_out)
    return keep_list


def _read(path: str) -> Iterator[tuple[int, int, pd.DataFrame]]:
    """Yield the rows of one Parquet file: row group, first row in it, and a frame."""
    _require_columns(path)
    with open_parquet(path, read_dictionary=["file", "digest"]) as file:
        for group in range(file.num_row_groups):
            first = 0
            for batch in file.iter_batches(BATCH_ROWS, [group], COLUMNS):
                if any(batch.column(name).null_count for name in ("file", "digest", "row")):
                    raise ValueError(f"{path} has rows without file, digest or row, as an outer join makes them.")
                keep = batch.column("keep").fill_null(False)  # a comparison with a score that is NULL
                frame = batch.to_pandas(ignore_metadata=True).assign(keep=keep.to_numpy(zero_copy_only=False))
                yield group, first, frame
                first += len(frame)


def _is_empty(path: str) -> bool:
    """Whether a shard has no image, as img2dataset writes it, or a table no row, as Spark does."""
    if is_shard(path):
        return not index_shard(path).locators
    is_table = kind_of(path) in (Kind.CSV, Kind.PARQUET, Kind.JSON_TABLE)
    return is_table and not any(map(len, read_table(path, required=())))


def _require_columns(path: str) -> None:
    types = import_pyarrow().types
    texts = types.is_string, types.is_large_string, types.is_string_view, types.is_dictionary

    def is_text(kind) -> bool:
        return any(is_it(kind) for is_it in texts)

    kinds = {"file": is_text, "digest": is_text, "row": types.is_integer, "keep": types.is_boolean}
    with open_parquet(path) as file:
        schema = file.schema_arrow
    found = {field.name: field.type for field in schema}
    if not all(name in found and is_kind(found[name]) for name, is_kind in kinds.items()):
        raise ValueError(
            f"{path} is not a keep-list: it needs the columns file and digest (text), row (whole number) and keep "
            f"(true or false), and has {', '.join(f'{name} ({kind})' for name, kind in found.items())}."
        )


def _starts_of_runs(frame: pd.DataFrame) -> list[int]:
    """The first row of each run of equal rows; the columns are categories."""
    codes = np.stack([frame[name].cat.codes for name in frame])
    return np.flatnonzero(np.concatenate([[len(frame) > 0], (np.diff(codes) != 0).any(axis=0)])).tolist()


def _common_end(one: str, other: str) -> int:
    """How many names at the ends of two paths are equal."""
    ends = (reversed(path.replace("\\", "/").split("/")) for path in (one, other))
    return next((count for count, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), 10**6)
