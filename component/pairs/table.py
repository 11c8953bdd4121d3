"""Tables with one row for each pair: CSV, Parquet or JSON, told apart by their content."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd

from component.ground.files import new_file
from component.ground.reading import is_file
from component.pairs.columns import clean_url, filename_from_url, find_columns
from component.pairs.csv_table import csv_writer, read_csv
from component.pairs.json_table import read_json_table
from component.pairs.parquet import ParquetWriter, read_parquet
from component.pairs.table_files import Kind, kind_of, parts_of

_READERS = {Kind.PARQUET: read_parquet, Kind.JSON_TABLE: read_json_table, Kind.CSV: read_csv}
_SEPARATORS = {".csv": ",", ".txt": ",", "": ",", ".tsv": "\t"}


def read_table(
    path: str,
    required: Sequence[str] = ("text", "filename"),
    only_required: bool = False,
    columns: Mapping[str, str] | None = None,
    chunk_rows: int = 20_000,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of a table in order, in frames of about `chunk_rows` rows; every cell is a `str`.

    A row with a list of captions becomes one row for each. URLs are cleaned, see `clean_url`; a missing `filename` is
    made of them, see `filename_from_url`.

    Args:
        path: CSV, Parquet, JSON lines, or JSON list; or a folder of parts of one.
        required: the columns that must exist, among text, filename and url; they get these names.
        only_required: yield these alone, in this order. The others are checked all the same.
        columns: required name → name of a column; others are found as `find_columns` says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a table, or a required column is missing, or it holds lists of file names or URLs.
        ImportError: the file is Parquet and pyarrow is not installed.
    """
    for part in parts_of(path):
        choice = _Choice(part, required, only_required, columns)
        for chunk in choice.read(chunk_rows):
            yield choice.finished(chunk)


def has_filenames(path: str, columns: Mapping[str, str] | None = None) -> bool:
    """Whether a table of URLs has a column of file names; otherwise `read_table` makes them from the URLs.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_table`.
    """
    choice = _Choice(path, ("url", "filename"), True, columns)
    next(choice.read(1), None)
    return not choice.makes_filenames


class _Choice:
    """The columns to read, and what is made of them."""

    def __init__(self, path: str, required: Sequence[str], only_required: bool, given: Mapping[str, str] | None):
        self._path, self._required, self._only_required, self._given = path, required, only_required, given

    def read(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        """The frames of the table, before they are `finished`."""
        path = self._path
        if not is_file(path):
            columns = ", ".join(self._required)
            raise FileNotFoundError(f"{path}: no such file. Expected a table with the columns {columns}.")
        kind = kind_of(path)
        if kind not in _READERS:
            raise ValueError(f"{path} holds captions as {kind.value}, not a table with one row for each pair.")
        yield from _READERS[kind](path, self, chunk_rows)

    def __call__(self, names: Sequence[str]) -> list[tuple[str, int]]:
        columns = find_columns(self._path, names, self._required, self._given)
        self._columns = columns
        known = [(name, names.index(column)) for name, column in columns.items() if column is not None]
        if self._only_required:
            return known
        target = {position: name for name, position in known}
        for position, name in enumerate(names):
            if position not in target and name in target.values():
                raise ValueError(
                    f"{self._path}: `{columns[name]}` is read as `{name}`, but another column has that name. Rename "
                    "or remove it."
                )
        return [(target.get(position, name), position) for position, name in enumerate(names)]

    @property
    def makes_filenames(self) -> bool:
        return self._columns.get("filename", "") is None

    def finished(self, chunk: pd.DataFrame) -> pd.DataFrame:
        if "text" in self._columns:
            chunk = with_one_text(chunk)
        for name in {"filename", "url"} & self._columns.keys():
            if self._columns[name] and _has_lists(chunk[name]):
                raise ValueError(
                    f"{self._path}: the column `{self._columns[name]}` holds lists, and a row needs one {name}. Write "
                    "a row for each."
                )
        if "url" in self._columns:
            chunk["url"] = chunk["url"].map(clean_url)
        if self.makes_filenames:
            chunk["filename"] = chunk["url"].map(filename_from_url)
        return chunk[list(self._required)] if self._only_required else chunk


def with_one_text(chunk: pd.DataFrame) -> pd.DataFrame:
    """The rows, with one for each text of a list of texts."""
    if _has_lists(chunk["text"]):
        return chunk.explode("text", ignore_index=True).fillna({"text": ""})
    return chunk


def _has_lists(cells: pd.Series) -> bool:
    return list in set(map(type, cells.tolist()))


def check_table_name(path: str) -> None:
    """Raise ValueError unless `new_table` writes the format that the ending of a name says."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (*_SEPARATORS, ".parquet"):
        raise ValueError(f"{path}: a table is written as .csv, .tsv or .parquet, not as {ending}")


@contextmanager
def new_table(path: str) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write a table that gets its name when the block ends, or leaves nothing when it fails.

    The name says the format, see `check_table_name`. All columns are texts.

    Yields:
        A function that appends the rows of a frame; the first frame names the columns.

    Raises:
        ValueError: the name asks for another format.
        ImportError: the table is to be Parquet and pyarrow is not installed.
    """
    check_table_name(path)
    if path.lower().endswith(".parquet"):
        with new_file(path, "wb") as file, ParquetWriter(file) as writer:
            yield writer.append
        return
    with new_file(path, newline="") as file:
        writer, is_first = csv_writer(file, _SEPARATORS[os.path.splitext(path)[1].lower()]), True

        def append(chunk: pd.DataFrame) -> None:
            nonlocal is_first
            if is_first:
                writer.writerow(chunk.columns)
                is_first = False
            writer.writerows(chunk.to_numpy(object).tolist())

        yield append
