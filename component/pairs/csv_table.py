"""CSV tables, read as they are written and written so that they read back the same."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TextIO

import pandas as pd

from component.pairs.columns import ChooseColumns, warn_once
from component.pairs.text_file import open_text, text_lines

MAX_CELL = 2**24  # characters: what a stray quote may swallow before it is found
MAX_COLUMNS = 10_000
_BATCH_ROWS = 1000
_END = "\x1a end of the table \x1a"  # a last row of our own: if it ends up in another row, a quote is still open
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)  # the first line of some files from Excel


def read_csv(path: str, choose: ChooseColumns, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of a CSV in order, at most `chunk_rows` at a time, so that memory does not grow with the file.

    Every cell is a `str` exactly as written: "NA", "007" and "1e5" stay themselves; an empty cell is "", and so is
    one that a row lacks at its end. Blank lines are skipped. A table without rows is one empty frame.

    Args:
        path: CSV with a header line, as `open_text` reads it. The separator is a comma; or the one that a first line
            `sep=;` names; or, if the header has no comma, a tab, semicolon or bar in it.
        choose: which columns to yield, see `component.pairs.table`. All are checked.

    Raises:
        ValueError: the file is not text or not a CSV; or a row has more cells than the header. The message names the
            line.
    """
    with open_text(path) as file:
        reader = _Reader(file, path)
        wanted = choose(reader.header)
        is_first = True
        while (columns := reader.read([position for _, position in wanted], chunk_rows))[0] or is_first:
            chunk = pd.DataFrame(dict(enumerate(columns)), dtype=str)
            chunk.columns = [name for name, _ in wanted]  # several may have the same name, or none
            yield chunk
            is_first = False


def csv_writer(file: TextIO, separator: str = ","):
    """A `csv.writer` for a text file opened with newline="": what it writes, `read_csv` reads back the same."""
    return csv.writer(_NewlineEnds(file), delimiter=separator)


class _NewlineEnds:
    """Ends lines with \\n, although a cell with a \\r in it is quoted.

    Before Python 3.13, a `csv.writer` quotes a cell only for the characters that end its own lines.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


class _Reader:
    """The rows of an open CSV, each compared with the header, and known by the line of the file it starts in."""

    def __init__(self, file: TextIO, path: str):
        csv.field_size_limit(MAX_CELL)
        self._path, self._escaped, self.header = path, None, []
        lines = text_lines(file, path)
        first = next(lines, "")
        skipped = 0
        if separator := _SEPARATOR_LINE.fullmatch(first):
            first, skipped = next(lines, ""), 1
        self._separator = separator[1] if separator else _separator_of(first)
        self._rows = csv.reader(itertools.chain([first], self._noted(lines), [_END]), delimiter=self._separator)
        self._skipped = skipped
        while _is_blank(header := self._next_rows(1)[0]):
            pass
        if header == [_END]:
            raise ValueError(f"{path} is empty. It needs a header line that names the columns.")
        self._require_closed(header, self._line + 1 - _lines_of(header))
        self.header = [name.lstrip("\ufeff") for name in header]
        if len(self.header) > MAX_COLUMNS:
            raise ValueError(f"{path} has {len(self.header):,} columns. Is its first line the names of the columns?")
        self._first_cells = {name for column in filter(None, self.header) for name in (column, f"\ufeff{column}")}

    @property
    def _line(self) -> int:
        return self._skipped + self._rows.line_num

    def read(self, wanted: Sequence[int], count: int) -> list[list[str]]:
        """The next `count` rows, fewer at the end, as one list for each wanted column."""
        columns = [[] for _ in wanted]
        while missing := count - len(columns[0]):
            start = self._line
            rows = self._next_rows(min(missing, _BATCH_ROWS))
            if not rows:
                break
            is_plain = set(map(len, rows)) == {len(self.header)} and self._line - start == len(rows)
            is_plain = is_plain and rows[-1] != [_END]  # as long as the header of a table with one column
            if not is_plain or self._escaped or not self._first_cells.isdisjoint(row[0] for row in rows):
                rows = list(self._checked(rows, start))
            by_column = list(zip(*rows, strict=True)) or [()] * len(self.header)
            for column, position in zip(columns, wanted, strict=True):
                column += by_column[position]
        return columns

    def _noted(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines; the first one whose quotes are escaped by a backslash is remembered."""
        for number, line in enumerate(lines, self._skipped + 2):
            if '\\"' in line and not self._escaped and self._is_escaped(line):
                self._escaped = number
            yield line

    def _is_escaped(self, line: str) -> bool:
        """Whether a line is a well-formed row only if a backslash escapes a quote."""
        width = len(self.header)
        escaping = _cells(line, delimiter=self._separator, doublequote=False, escapechar="\\")
        return escaping == width > 0 and _cells(line, delimiter=self._separator) != width

    def _next_rows(self, count: int) -> list[list[str]]:
        rows, start = [], self._line
        try:
            for row in itertools.islice(self._rows, count):
                rows.append(row)
        except csv.Error as error:
            self._require_doubled_quotes()
            raise self._fault(
                start + 1 + sum(map(_lines_of, rows)), f"{error}, perhaps because a quote is not closed"
            ) from None
        return rows

    def _checked(self, rows: list[list[str]], line: int) -> Iterator[list[str]]:
        """The rows after a line, filled up to the header's length, without blank ones and repeated headers."""
        self._require_doubled_quotes()
        width = len(self.header)
        for row in rows:
            first, line = line + 1, line + _lines_of(row)
            if row == [_END] or _is_blank(row):
                continue
            self._require_closed(row, first)
            if len(row) > width:
                raise self._fault(first, f"it has {len(row)} cells, more than the {width} of the header")
            if line > first and any(_has_swallowed_rows(row, column, self._separator) for column in range(len(row))):
                warn_once(
                    "%s, line %d: one cell holds %d line breaks and what looks like further rows. Is there a stray "
                    "quote in lines %d to %d?",
                    *(self._path, first, line - first, first, line),
                )
            names = [row[0].lstrip("\ufeff"), *row[1:]]
            if names == self.header:
                warn_once("%s, line %d: the header comes again, as `cat` joins files. Skipped.", self._path, first)
                continue
            if width > 1 and sorted(names) == sorted(self.header):
                raise ValueError(
                    f"{self._path}, line {first}: a second header has the columns in another order. Give the files "
                    "that were joined here one by one, as a list."
                )
            yield row + [""] * (width - len(row))

    def _require_doubled_quotes(self) -> None:
        if self._escaped:
            raise ValueError(
                f'{self._path}, line {self._escaped}: quotes are escaped by a backslash (\\"), as Spark and MySQL '
                'write them; a CSV doubles them (""). In Spark, export again with .option("escape", "\\""); or '
                "convert it: python -c \"import pandas; pandas.read_csv('IN.csv', escapechar='\\\\\\\\', dtype=str, "
                "keep_default_na=False).to_csv('OUT.csv', index=False)\""
            )

    def _require_closed(self, row: list[str], line: int) -> None:
        if row[-1].endswith(_END):
            raise self._fault(line, "a quote that opens in it is never closed")

    def _fault(self, line: int, what: str) -> ValueError:
        hint = "A cell that holds a comma or a quote must be quoted."
        return ValueError(f"{self._path} is not a well-formed CSV, in line {line}: {what}. {hint}")


def _separator_of(header: str) -> str:
    if "," in header:
        return ","
    return next((separator for separator in "\t;|" if _cells(header, delimiter=separator) > 1), ",")


def _cells(line: str, **dialect) -> int:
    """The number of cells of a line that is a row by itself; 0 if it is not well-formed."""
    try:
        return sum(map(len, csv.reader([line], strict=True, **dialect)))
    except csv.Error:
        return 0


def _lines_of(row: list[str]) -> int:
    return 1 + sum(len(_LINE_BREAK.findall(cell)) for cell in row)


def _is_blank(row: list[str]) -> bool:
    return len(row) < 2 and not "".join(row).strip()


def _has_swallowed_rows(row: list[str], column: int, separator: str) -> bool:
    """Whether a cell contains rows: each of its lines has the separators of a row, as far as it belongs to the cell.

    The first line begins in `column` and the last one ends there. A caption of two lines with a comma may look like
    that, so of two lines the would-be cell must also resemble the row's own.
    """
    lines, width = _LINE_BREAK.split(row[column]), len(row)
    wanted = [width - 1 - column, *[width - 1] * (len(lines) - 2), column]
    if width == 1 or len(lines) == 1 or [line.count(separator) for line in lines] != wanted:
        return False
    ends_alike = column < width - 1 and _are_alike(lines[0].split(separator)[-1], row[-1])
    begins_alike = column > 0 and _are_alike(lines[-1].split(separator)[0], row[0])
    return len(lines) > 2 or ends_alike or begins_alike


def _are_alike(one: str, other: str) -> bool:
    one, other = one.strip(), other.strip()
    return bool(one and other) and (one[-3:] == other[-3:] or one[:4] == other[:4])
