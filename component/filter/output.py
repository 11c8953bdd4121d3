"""What filtering writes: the kept rows, the report of the dropped ones, and the funnel of counts."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import pandas as pd

from component.ground.files import new_file
from component.ground.lock import sole_writers
from component.ground.plain_text import spreadsheet_cell
from component.pairs.table import new_table

# In the order in which they are checked.
REASONS = (
    *("empty_text", "short_text", "long_text", "little_chinese"),
    *("bad_filename", "missing", "not_a_file", "empty", "html", "text", "not_image", "truncated", "broken"),
    *("gif", "animated", "svg", "no_plugin", "other_format", "undecodable"),
    *("too_large", "too_many_pixels", "too_many_scans", "small", "long_and_narrow"),
    *("dissimilar", "exact_duplicate", "near_duplicate"),
)


@contextmanager
def filter_output(
    out_file: str | None = None, report: str | None = None
) -> Iterator[Callable[[pd.DataFrame, list[str]], None]]:
    """Write the result of a filter. The files appear when the block ends without an error.

    Args:
        out_file: table of the kept rows, see `new_table`, all columns as they were; None: not written.
        report: CSV `row,filename,reason,text` of the dropped rows, rows counted from 1; None: not written.

    Yields:
        A function that takes the next rows and their reasons, see `judge_pairs`.

    Raises:
        ValueError: another process writes one of the files.
    """
    with (
        sole_writers(out_file, report),
        new_table(out_file) if out_file else nullcontext() as append,
        new_file(report, newline="") if report else nullcontext() as file,
    ):
        num_rows, writer = 0, file and csv.writer(file)
        if writer:
            writer.writerow(["row", "filename", "reason", "text"])

        def write(chunk: pd.DataFrame, reasons: list[str]) -> None:
            nonlocal num_rows
            if append:
                append(chunk.loc[[not reason for reason in reasons]])
            if writer:
                rows = zip(chunk["filename"], reasons, chunk["text"], strict=True)
                for number, (filename, reason, text) in enumerate(rows, num_rows + 1):
                    if reason:
                        writer.writerow([number, *map(spreadsheet_cell, (filename, reason, text))])
            num_rows += len(chunk)

        yield write


class Funnel:
    """Counts the reasons of `judge_pairs`; as a string, a table for a terminal.

    Args:
        counts: reason → number of rows, "" for those that are kept.
    """

    def __init__(self, counts: Mapping[str, int] = MappingProxyType({})):
        self._rows: Counter[str] = Counter(counts)

    def add(self, reasons: Iterable[str]) -> None:
        self._rows.update(reason.partition(":")[0] for reason in reasons)

    def __str__(self) -> str:
        total = left = self._rows.total()
        lines = [f"{'':<20} {'rows':>10} {'left':>10}", f"{'rows in':<31} {left:>10}"]
        for reason in dict.fromkeys([*REASONS, *filter(None, self._rows)]):
            if rows := self._rows[reason]:
                left -= rows
                lines.append(f"- {reason:<18} {rows:>10} {left:>10}")
        lines.append(f"{'rows out':<31} {left:>10} {left / max(total, 1):>7.1%}")
        if total and self._rows["missing"] + self._rows["bad_filename"] == total:
            lines.append("Not one image was found: the file names must be relative to --image_path.")
        return "\n".join(lines)
