"""The reports of the parts of a download → one report."""

import glob
import os
import re

from component.download.report import HEADER, default_report, whole_rows
from component.ground.files import new_file
from component.ground.lock import sole_writers

BLOCK_BYTES = 2**20


def join_reports(train_file: str, path: str | None = None) -> tuple[str, int]:
    """Write the reports of all parts, which are next to the table, into one.

    Args:
        train_file: the table.
        path: of the new report; None: the default one.

    Returns:
        The path, and the number of parts.

    Raises:
        ValueError: the report exists; there is no report of a part; or a part is missing or being written.
    """
    path = path or default_report(train_file, (1, 1))
    if os.path.exists(path):
        raise ValueError(f"{path} exists. Remove it, or give another --report.")
    parts = _parts(train_file)
    if missing := [part for part in parts if not os.path.isfile(part)]:
        raise ValueError(
            f"{missing[0]}: no such file; {len(parts) - len(missing)} of {len(parts)} parts have a report."
        )
    with sole_writers(path, *parts), new_file(path, "wb") as report:
        report.write(HEADER)
        for part in parts:
            end = whole_rows(part)
            with open(part, "rb") as rows:
                rows.readline()  # the header
                while rows.tell() < end:
                    report.write(rows.read(min(BLOCK_BYTES, end - rows.tell())))
    return path, len(parts)


def _parts(train_file: str) -> list[str]:
    """The paths of the reports of all parts, of which at least one is there."""
    stem = default_report(train_file, (1, 1)).removesuffix(".csv")
    found = (re.search(r"\.[0-9]+-of-([0-9]+)\.csv$", path) for path in glob.glob(f"{glob.escape(stem)}.*-of-*.csv"))
    counts = {int(match[1]) for match in found if match}
    if not counts:
        raise ValueError(f"there is no report of a part next to {train_file} ({stem}.1-of-….csv).")
    if len(counts) > 1:
        raise ValueError(
            f"there are reports of {' and of '.join(map(str, sorted(counts)))} parts next to {train_file}."
        )
    (count,) = counts
    return [default_report(train_file, (index, count)) for index in range(1, count + 1)]
