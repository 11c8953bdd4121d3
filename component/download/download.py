"""A table of URLs → a folder of images and a report. Constant memory, resumable at any moment."""

import functools
import os
from collections.abc import Iterator

from component.download.address import host_of
from component.download.outcome import FetchError, Outcome
from component.download.processes import Processes
from component.download.report import Report
from component.download.url_table import NO_ROWS, Row, read_rows
from component.download.worker import THIS_DISK, DownloadSettings, Job
from component.ground.files import is_temporary, sweep
from component.pairs.paths import normal_name, writable_file

ROWS_IN_HAND = 20_000  # read ahead, so that one slow host in the table does not hide the others behind it


def download_images(
    train_file: str,
    image_path: str,
    report: Report,
    settings: DownloadSettings,
    part: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    verify: bool = False,
) -> Iterator[Outcome]:
    """Download every row and yield what became of it, in the order in which the rows end.

    A file under its final name is whole: it is written under a hidden name beside it, decoded, noted in the report,
    and renamed. So a run that was cut off is continued by calling this again: rows whose file exists are skipped
    without a request, and so are rows that the report knows as failed, unless `retry_failed`.

    Args:
        train_file: CSV with the columns `url` and `filename`.
        image_path: folder to write to, made when missing; nothing is written outside it.
        report: open report; a row is added before its outcome is yielded, and before its file has its name.
        part: (i, n): only the i-th of n disjoint parts, counted from 1. A file name always falls into the same part.
        verify: decode each file that is there and that the report does not know as whole. One that is broken stays
            until another that is whole takes its name.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: the disk is full or read-only, or this machine cannot open more files and connections.
    """
    os.makedirs(image_path, exist_ok=True)
    known_failures = NO_ROWS if retry_failed else report.rows_that("failed")
    known_as_whole = report.rows_that("ok", "verified") if verify else NO_ROWS
    kept = {os.path.realpath(path) for path in (train_file, report.path)}  # they may lie among the images
    sweep_once = functools.lru_cache(maxsize=10_000)(sweep)
    processes, in_hand = Processes(settings, report), 0
    try:
        rows = read_rows(train_file, part, known_failures, known_as_whole)
        for number, row in enumerate(rows, 1):
            found = _look_at(number, row, image_path, verify, kept)
            if isinstance(found, Job):
                sweep_once(os.path.dirname(found.path))  # what a killed run left beside the files it could not finish
                processes.put(found)
                in_hand += 1
            else:
                if found.status == "failed":
                    report.add(found)
                yield found
            while in_hand and (in_hand >= ROWS_IN_HAND or not processes.ended.empty()):
                in_hand -= 1
                yield _next_outcome(processes)
        while in_hand:
            in_hand -= 1
            yield _next_outcome(processes)
    finally:
        processes.close()


def _next_outcome(processes: Processes) -> Outcome:
    ended = processes.ended.get()
    if isinstance(ended, Exception):
        raise ended
    return ended


def _look_at(number: int, row: Row, image_path: str, verify: bool, kept: set[str]) -> Outcome | Job:
    """The outcome of a row that needs neither a request nor a look into its file; else what is to be done for it."""
    job = Job(number, row.filename, row.url, "", THIS_DISK, row.failed_before)
    if row.kind == "repeated":
        return job.outcome("skipped", "repeated")
    reason = ""
    try:
        if row.kind == "duplicate":
            raise FetchError("duplicate_filename", "an earlier row has it with another URL")
        job.path = _place_for(row.filename, image_path)
        if os.path.exists(job.path) and os.path.getsize(job.path) > 0:
            if not verify or row.whole_before or os.path.realpath(job.path) in kept:
                return job.outcome("skipped", "exists")
            return job
        job.host = host_of(row.url)
    except ValueError as error:
        reason = f"bad_filename: {error}"
    except FetchError as error:
        reason = str(error)
    if row.failed_before:
        return job.outcome("skipped", "failed_before")
    return job.outcome("failed", reason) if reason else job


def _place_for(filename: str, image_path: str) -> str:
    """The path to write to.

    Raises:
        ValueError: as `writable_file`, or when it would be taken for the temporary file of another.
    """
    if any(is_temporary(part) for part in normal_name(filename).split("/")):
        raise ValueError("filename is one of those that temporary files have here")
    return writable_file(image_path, filename)
