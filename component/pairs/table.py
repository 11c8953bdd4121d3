"""The table of image-text pairs: a CSV, read as it is written and written so that it reads back the same."""

import csv
import functools
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import TextIO

import pandas as pd

from component.pairs.text_file import open_text, text_lines

logger = logging.getLogger(__name__)

MAX_CELL = 2**24  # characters: what a stray quote may swallow before it is found out
MAX_COLUMNS = 10_000
_BATCH_ROWS = 1000
_END = "\x1a end of the table \x1a"  # a last row of our own: where it lands in another row, a quote is still open
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_NAME_ENDING = re.compile(r"\w\.\w{2,5}\s*([,\r\n]|$)")  # of a cell such as 1.jpg
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "“|”", "，": "full-width commas", "、": "“、”"}

_warn_once = functools.lru_cache(logger.warning)  # a table is read to be checked, and once more to be used


def read_pairs(
    path: str,
    required: Sequence[str] = ("text", "filename"),
    only_required: bool = False,
    chunk_rows: int = 20_000,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of a CSV in order, at most `chunk_rows` at a time, so memory does not grow with the file.

    Every cell is a `str` exactly as written: "NA", "007" and "1e5" stay themselves; an empty cell is "", and so is
    one that a row lacks at its end. Lines without anything are no rows. A table without rows is one empty frame.

    Args:
        path: CSV with a header line, as `open_text` reads it.
        required: columns that must exist, once each.
        only_required: yield these alone. The others are checked all the same.
        chunk_rows: rows per yielded frame.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a text, not a CSV, no header, a required column is missing (the message names those found), or
            a row has more cells than the header (the message names the line).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file. Expected a CSV with the columns {', '.join(required)}.")
    with open_text(path) as file:
        reader = _Reader(file, path, required)
        header = reader.header
        wanted = [header.index(name) for name in required] if only_required else range(len(header))
        is_first = True
        while (columns := reader.read(wanted, chunk_rows))[0] or is_first:
            chunk = pd.DataFrame(dict(enumerate(columns)), dtype=str)
            chunk.columns = [header[place] for place in wanted]  # some may have the same name, or none
            yield chunk
            is_first = False


def table_writer(file: TextIO):
    """A `csv.writer` for a text file opened with newline="": what it writes, `read_pairs` reads back the same."""
    return csv.writer(_NewlineEnds(file))


class _NewlineEnds:
    """Lines end in \\n, but a cell with a \\r in it is quoted: a `csv.writer` of before Python 3.13 looks for those
    characters alone that end its lines."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


class _Reader:
    """The rows of an open CSV, each checked against the header, and known by the line of the file it starts in."""

    def __init__(self, file: TextIO, path: str, required: Sequence[str]):
        csv.field_size_limit(MAX_CELL)
        self._path = path
        self._rows = csv.reader(itertools.chain(text_lines(file, path), [_END]))
        while _is_blank(first := self._next_rows(1)[0]):
            pass
        if first == [_END]:
            raise ValueError(f"{path} is empty. It needs a header line: {','.join(required)}.")
        self._require_closed(first, self._rows.line_num + 1 - _lines_of(first))
        self.header = [name.lstrip("\ufeff") for name in first]
        if len(self.header) > MAX_COLUMNS:
            raise ValueError(f"{path} has {len(self.header):,} columns. Is its first line the names of the columns?")
        require_columns(path, required, self.header, hint="The first line must name the columns.")

    def read(self, wanted: Sequence[int], count: int) -> list[list[str]]:
        """The next `count` rows, fewer at the end, as one list for each wanted column."""
        columns = [[] for _ in wanted]
        while missing := count - len(columns[0]):
            start = self._rows.line_num
            rows = self._next_rows(min(missing, _BATCH_ROWS))
            if not rows:
                break
            if set(map(len, rows)) != {len(self.header)} or self._rows.line_num - start > len(rows):
                rows = list(self._checked(rows, start))
            by_column = list(zip(*rows, strict=True)) or [()] * len(self.header)
            for column, place in zip(columns, wanted, strict=True):
                column += by_column[place]
        return columns

    def _next_rows(self, count: int) -> list[list[str]]:
        rows, start = [], self._rows.line_num
        try:
            for row in itertools.islice(self._rows, count):
                rows.append(row)
        except csv.Error as error:
            raise self._fault(
                start + 1 + sum(map(_lines_of, rows)), f"{error}, perhaps because a quote is not closed"
            ) from None
        return rows

    def _checked(self, rows: list[list[str]], line: int) -> Iterator[list[str]]:
        """The rows behind so many lines, all of the header's length, without blank ones."""
        width = len(self.header)
        for row in rows:
            first, line = line + 1, line + _lines_of(row)
            if row == [_END] or _is_blank(row):
                continue
            self._require_closed(row, first)
            if len(row) > width:
                raise self._fault(first, f"it has {len(row)} cells, more than the {width} of the header")
            if line > first and any(_has_swallowed_rows(cell, width) for cell in row):
                _warn_once(
                    "%s, line %d: one cell holds %d line breaks and what looks like further rows. Is there a stray "
                    "quote in lines %d to %d?",
                    *(self._path, first, line - first, first, line),
                )
            yield row + [""] * (width - len(row))

    def _require_closed(self, row: list[str], line: int) -> None:
        if row[-1].endswith(_END):
            raise self._fault(line, "a quote that opens in it is never closed")

    def _fault(self, line: int, what: str) -> ValueError:
        hint = "A cell that holds a comma or a quote must be quoted."
        return ValueError(f"{self._path} is not a well-formed CSV, in line {line}: {what}. {hint}")


def _lines_of(row: list[str]) -> int:
    return 1 + sum(len(_LINE_BREAK.findall(cell)) for cell in row)


def _is_blank(row: list[str]) -> bool:
    return len(row) < 2 and not "".join(row).strip()


def _has_swallowed_rows(cell: str, width: int) -> bool:
    """Whether a cell has line breaks, the commas of as many rows, and a file name or address before one of either."""
    breaks = len(_LINE_BREAK.findall(cell))
    return breaks > 0 and cell.count(",") >= breaks * (width - 1) and bool(_NAME_ENDING.search(cell))


def require_columns(path: str, required: Sequence[str], found: Sequence[str], hint: str = "") -> None:
    """Raise ValueError where the table in `path` lacks a required column, with those found, or has it twice."""
    for column in required:
        if found.count(column) > 1:
            raise ValueError(
                f"{path} has {found.count(column)} columns `{column}`. Which one counts? Rename the others."
            )
    missing = [column for column in required if column not in found]
    if not missing:
        return
    alike = [name for name in found if name not in required and _letters(name) in required]
    separators = [name for mark, name in _SEPARATORS.items() if len(found) == 1 and mark in found[0]]
    if separators:
        hint = f"Its cells are separated by {separators[0]}; a CSV has commas between them."
    elif found[0].lstrip().startswith(("{", "[")):
        hint = "It looks like JSON: such a file's name ends in .jsonl or .json."
    elif alike:
        hint = f"Blanks and capitals count: rename {', '.join(map(repr, alike))}."
    names = ", ".join(name if name.isprintable() else repr(name) for name in found)
    raise ValueError(
        f"{path} has no column {', '.join(f'`{column}`' for column in missing)} "
        f"(found: {names if len(names) < 300 else names[:300] + '…'}). "
        f"It needs the columns {', '.join(required)}. {hint}".rstrip()
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()
