"""A table of URLs → a folder of images and a report, in constant memory and resumable at any time."""

import functools
import os
from collections.abc import Iterator

from component.download.address import read_url
from component.download.folder_names import NameRules
from component.download.job import DownloadSettings, Job
from component.download.outcome import FetchError, Outcome
from component.download.processes import Processes
from component.download.report import Report
from component.download.rows import NO_ROWS, Row, Rows
from component.ground.files import is_temporary, sweep
from component.ground.lock import sole_writer
from component.pairs.paths import normal_name, writable_file

ROWS_IN_HAND = 20_000  # read ahead, so that a slow host does not block the hosts after it in the table


def download_images(
    rows: Rows, report: Report, settings: DownloadSettings, retry_failed: bool = False, verify: bool = False
) -> Iterator[Outcome]:
    """Download every row and yield its outcome, in the order in which the rows finish.

    A file with its final name is complete: it is written under a hidden name next to it, decoded, added to the report,
    and renamed. To continue an interrupted run, call this again: rows whose file exists are skipped without a request,
    and so are rows that failed according to the report, unless `retry_failed`.

    Close the iterator (`contextlib.closing`) before the report: closing waits for the images in progress.

    Args:
        rows: nothing is written outside their `image_path`.
        report: open report; a row is added before its outcome is yielded, and before its file has its name.
        verify: decode each existing file that the report does not list as good. A broken file stays until a good one
            replaces it.

    Raises:
        ValueError: another download writes this part to the folder.
        OSError: the disk is full or read-only, this machine cannot open more files and connections, or its network
            has been down for too long.
    """
    known_failures = NO_ROWS if retry_failed else report.rows_that("failed")
    known_as_whole = report.rows_that("ok", "verified") if verify else NO_ROWS
    kept = {os.path.realpath(path) for path in (*rows.files, report.path)}  # they may be among the images
    sweep_once = functools.lru_cache(maxsize=10_000)(sweep)
    with _sole_download(rows), Processes(settings, report) as processes:
        in_hand = 0
        for row in rows.rows(known_failures, known_as_whole):
            found = _look_at(row, rows, verify, kept)
            if isinstance(found, Job):
                sweep_once(os.path.dirname(found.path))  # temporary files of a killed run
                processes.put(found)
                in_hand += 1
            else:
                if found.status == "failed":
                    report.add(found)
                yield found
            while in_hand and (in_hand >= ROWS_IN_HAND or not processes.ended.empty()):
                in_hand -= 1
                yield processes.next_outcome()
        while in_hand:
            in_hand -= 1
            yield processes.next_outcome()


def _sole_download(rows: Rows):
    """Lock the folder for this part: different parts may be downloaded into one folder at the same time."""
    index, count = rows.part
    if count == 1:
        return sole_writer(rows.image_path, inside=True)
    return sole_writer(os.path.join(rows.image_path, f"part {index} of {count}"))


def _look_at(row: Row, rows: Rows, verify: bool, kept: set[str]) -> Outcome | Job:
    """The outcome of a row that needs neither a request nor reading its file; otherwise its job."""
    job = Job(row.number, row.filename, row.url, row.mended_url, failed_before=row.failed_before)
    try:
        if row.first != row.number:
            if row.has_first_url:
                return job.outcome("skipped", "repeated")
            raise FetchError("duplicate_filename", _first_row(row, rows))
        job.path = _path_of(row.filename, rows.image_path)
        if os.path.exists(job.path) and os.path.getsize(job.path) > 0:
            if not verify or row.whole_before or os.path.realpath(job.path) in kept:
                return job.outcome("skipped", "exists")
            return job
        if not row.failed_before:
            job.address = read_url(row.mended_url)
            return job
        reason = ""
    except ValueError as error:
        reason = f"bad_filename: {error}"
    except FetchError as error:
        reason = str(error)
    return job.outcome("skipped", "failed_before") if row.failed_before else job.outcome("failed", reason)


def _first_row(row: Row, rows: Rows) -> str:
    alike = "" if rows.name_rules == NameRules() else ", or a name that this folder does not tell apart from it,"
    return f"row {row.first} has the name of row {row.number}{alike} with another URL"


def _path_of(filename: str, image_path: str) -> str:
    """The path to write to.

    Raises:
        ValueError: as `writable_file`, or the name is that of a temporary file.
    """
    if any(is_temporary(name) for name in normal_name(filename).split("/")):
        raise ValueError("filename is one of those that temporary files have here")
    return writable_file(image_path, filename)
