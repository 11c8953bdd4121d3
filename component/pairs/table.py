"""The table of image-text pairs, read from a CSV."""

import os
from collections.abc import Iterator, Sequence

import pandas as pd


def read_pairs(
    path: str,
    required: Sequence[str] = ("text", "filename"),
    only_required: bool = False,
    chunk_rows: int = 100_000,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of a CSV in order, at most `chunk_rows` at a time, so memory does not grow with the file.

    Every cell is a `str` exactly as written: "NA", "007" and "1e5" stay themselves; an empty cell is "".

    Args:
        path: CSV with a header line, UTF-8 with or without BOM.
        required: columns that must exist.
        only_required: leave the other columns unread.
        chunk_rows: rows per yielded frame.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, not a CSV, no header, or a required column is missing (the message names those found).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file. Expected a CSV with the columns {', '.join(required)}.")
    options = dict(dtype=str, keep_default_na=False, encoding="utf-8-sig")
    try:
        head = pd.read_csv(path, nrows=1, **options)
        found = list(head.columns)
        require_columns(path, required, found, hint="The first line must name the columns.")
        if not isinstance(head.index, pd.RangeIndex):  # pandas takes surplus cells of the first row for row names
            raise pd.errors.ParserError(f"line 2 has more cells than the {len(found)} of the header")
        if only_required:
            options["usecols"] = list(required)
        with pd.read_csv(path, chunksize=chunk_rows, **options) as chunks:
            for chunk in chunks:
                yield chunk.fillna("")  # a row with too few cells
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty. It needs a header line: {','.join(required)}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it first, for example from GBK: "
            f"iconv -f gb18030 -t utf-8 {path} > utf8.csv"
        ) from None
    except pd.errors.ParserError as error:
        raise ValueError(
            f"{path} is not a well-formed CSV: {error}. A cell that holds a comma or a quote must be quoted."
        ) from None


def require_columns(path: str, required: Sequence[str], found: Sequence[str], hint: str = "") -> None:
    """Raise ValueError, with those that were found, where the table in `path` lacks a required column."""
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(f'`{column}`' for column in missing)} (found: {', '.join(found)}). "
            f"It needs the columns {', '.join(required)}. {hint}".rstrip()
        )
