"""A table of URLs → a folder of images and a report. Constant memory, resumable at any moment."""

import contextlib
import errno
import functools
import hashlib
import io
import os
import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from component.download.address import host_of
from component.download.decoding import Decoders
from component.download.failure import FetchError
from component.download.connection import BLOCK_BYTES
from component.download.fetch import OUR_ERRNO, Fetcher, FetchLimits
from component.download.host_queue import HostQueue
from component.download.report import Outcome, Report
from component.download.url_table import NO_ROWS, Row, read_rows
from component.files import is_temporary, new_file, sweep
from component.image.load import BadImageError
from component.pairs.paths import normal_name, writable_file

ROWS_IN_HAND = 20_000  # read ahead, so that one slow host in the table does not hide the others behind it
IN_MEMORY_BYTES = 2**20  # of each image under way; the rest of a larger one waits in a temporary file
MAX_RETRY_AFTER = 60.0  # seconds; who asks for more is left for another day (--retry_failed)
SILENT_IN_A_ROW = 20  # unanswered requests after which a host counts as dead for the rest of the run
FATAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS} | OUR_ERRNO  # every further row would fail the same way
THIS_DISK = ""  # the host of files that are there and wait to be verified


@dataclass(frozen=True)
class DownloadSettings:
    """How to download; what a single request may cost is in `limits`.

    Attributes:
        num_threads: pictures under way at the same time.
        per_host: of these, at most so many at one host.
        retries: further attempts after 429, 5xx and broken connections.
        resize: shorter side in pixels; None keeps the bytes as they came.
    """

    num_threads: int = 64
    per_host: int = 16
    retries: int = 2
    resize: int | None = None
    limits: FetchLimits = field(default_factory=FetchLimits)


@dataclass
class _Job:
    row: Row
    path: str
    host: str
    attempts: int = 0
    seconds: float = 0.0


class _TryAgain(Exception):
    """The attempt failed in a way that may pass; `delay` in seconds."""

    def __init__(self, delay: float):
        self.delay = delay


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
    run = _Run(settings, report)
    known_failures = NO_ROWS if retry_failed else report.rows_that("failed")
    known_as_whole = report.rows_that("ok", "verified") if verify else NO_ROWS
    kept = {os.path.realpath(path) for path in (train_file, report.path)}  # they may lie among the images
    in_hand = 0
    try:
        for row in read_rows(train_file, part, known_failures, known_as_whole):
            outcome = run.settle_or_queue(row, image_path, verify, kept)
            if outcome is None:
                in_hand += 1
            else:
                yield outcome
            while in_hand and (in_hand >= ROWS_IN_HAND or not run.ended.empty()):
                in_hand -= 1
                yield run.next_outcome()
        while in_hand:
            in_hand -= 1
            yield run.next_outcome()
    finally:
        run.close()


class _Run:
    """The threads of one download: they take jobs from `queue` and put outcomes into `ended`."""

    def __init__(self, settings: DownloadSettings, report: Report):
        self.settings = settings
        self.queue = HostQueue(settings.per_host)
        self.ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._report = report
        self._fetcher = Fetcher(settings.limits, settings.per_host)
        self._decoders = Decoders()
        self._unanswered: Counter[str] = Counter()  # hosts that do not answer, by requests in a row
        self._sweep_once = functools.lru_cache(maxsize=10_000)(sweep)
        for _ in range(settings.num_threads):
            # daemon: Ctrl-C need not wait for a hanging server, and no thread leaves a half file under a final name
            threading.Thread(target=self._work, daemon=True, name="download").start()

    def settle_or_queue(self, row: Row, image_path: str, verify: bool, kept: set[str]) -> Outcome | None:
        """The outcome of a row that needs neither a request nor a look into its file; None when it was queued."""
        if row.kind == "repeated":
            return _outcome(row, "skipped", "repeated")
        host = None
        try:
            if row.kind == "duplicate":
                raise FetchError("duplicate_filename", "an earlier row has it with another URL")
            path = _place_for(row.filename, image_path)
            if os.path.exists(path) and os.path.getsize(path) > 0:
                if not verify or row.whole_before or os.path.realpath(path) in kept:
                    return _outcome(row, "skipped", "exists")
                host = THIS_DISK
            else:
                host = host_of(row.url)
        except ValueError as error:
            reason = f"bad_filename: {error}"
        except FetchError as error:
            reason = str(error)
        else:
            reason = ""
        if row.failed_before and host != THIS_DISK:
            return _outcome(row, "skipped", "failed_before")
        if reason:
            outcome = _outcome(row, "failed", reason)
            self._report.add(outcome)
            return outcome
        self._sweep_once(os.path.dirname(path))  # what a killed run left beside the files that it could not finish
        self.queue.put(host, _Job(row, path, host))
        return None

    def close(self) -> None:
        """Send the threads and the processes home; what waits is left behind."""
        self.queue.close()
        self._decoders.close()

    def next_outcome(self) -> Outcome:
        ended = self.ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            host = job.host
            try:
                self.ended.put(self._attempt(job))
            except _TryAgain as again:
                self.queue.put(job.host, job, again.delay)
            except BaseException as error:  # a fault of ours or of the disk: the caller must hear of it, and stop
                self.ended.put(error)
            finally:
                self.queue.done(host)

    def _attempt(self, job: _Job) -> Outcome:
        """Verify, or fetch and check, one image; unless it is skipped, its outcome stands in the report.

        Raises:
            _TryAgain: another attempt is allowed and promises something.
            OSError: no image can be written any more.
        """
        outcome = _outcome(job.row, "failed")
        try:
            if job.host == THIS_DISK:
                self._verify(job, outcome)
            elif self._unanswered.get(job.host, 0) >= SILENT_IN_A_ROW:
                outcome.reason = f"host_down: {SILENT_IN_A_ROW} requests in a row unanswered, this one not sent"
            else:
                self._fetch(job, outcome)
        except _TryAgain:
            raise
        except FetchError as error:
            self._watch_host(job.host, error)
            self._ask_again(job, error)
            outcome.http_code, outcome.reason = error.http_code, str(error)
        except BadImageError as error:
            outcome.http_code, outcome.reason = 200, str(error)
        except MemoryError:
            outcome.reason = "no_memory: too little for this image"
        except OSError as error:
            if error.errno in FATAL_ERRNO:
                raise
            outcome.reason = f"disk: {error.strerror or error}"
        except Exception as error:  # one strange image must not end a night's run, nor go unnoticed
            outcome.reason = f"internal_error: {type(error).__name__}: {error}"
        if outcome.reason and outcome.status != "skipped":
            outcome.status, outcome.bytes, outcome.seconds = "failed", 0, job.seconds
            self._report.add(outcome)
        return outcome

    def _verify(self, job: _Job, outcome: Outcome) -> None:
        """Look into a file that is there.

        Raises:
            _TryAgain: it is broken, and now a job for its host.
        """
        try:
            with open(job.path, "rb") as file:
                self._decoders.check(file)
                outcome.status, outcome.bytes = "verified", os.fstat(file.fileno()).st_size
        except BadImageError:
            if job.row.failed_before:
                outcome.status, outcome.reason = "skipped", "failed_before"
                return
            job.host = host_of(job.row.url)
            raise _TryAgain(0) from None
        self._report.add(outcome)

    def _fetch(self, job: _Job, outcome: Outcome) -> None:
        """Put the image under its final name, and add the time spent to the job."""
        started = time.monotonic()
        try:
            with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as body:
                self._fetcher.fetch(job.row.url, body, self.settings.limits.timeout - job.seconds)
                self._unanswered.pop(job.host, None)
                if self.settings.resize:
                    content = io.BytesIO(self._decoders.shrink(body, self.settings.resize))
                else:
                    content = body
                    self._decoders.check(body)
                outcome.status, outcome.http_code = "ok", 200
                outcome.seconds = job.seconds + time.monotonic() - started
                self._write(content, job.path, outcome)
        finally:
            job.seconds += time.monotonic() - started

    def _write(self, content: BinaryIO, path: str, outcome: Outcome) -> None:
        if not os.path.isdir(os.path.dirname(path)):  # makedirs alone would lock the folder around it each time
            os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = hashlib.blake2b(digest_size=8)
        content.seek(0)
        with _named(path), new_file(path, "wb", sync=False) as file:
            while block := content.read(BLOCK_BYTES):
                file.write(block)
                digest.update(block)
            file.flush()  # now a full disk shows
            outcome.bytes = file.tell()
            # Before the file has its name, so that there is none without its row, however this process ends. A row
            # whose file is not there is simply done again.
            self._report.add(outcome, digest.digest())

    def _watch_host(self, host: str, error: FetchError) -> None:
        if error.http_code is None and error.reason in ("dns", "connection", "timeout"):
            self._unanswered[host] += 1
        else:
            self._unanswered.pop(host, None)

    def _ask_again(self, job: _Job, error: FetchError) -> None:
        """Raise _TryAgain when the failure may pass and the row's attempts and seconds are not used up."""
        job.attempts += 1
        if not error.may_pass or job.attempts > self.settings.retries or job.seconds >= self.settings.limits.timeout:
            return
        if error.retry_after is None:
            raise _TryAgain(2 ** (job.attempts - 1) * random.uniform(0.5, 1.5))
        if error.retry_after <= MAX_RETRY_AFTER:
            self.queue.pause(job.host, error.retry_after)  # the whole host: its other rows would hear the same
            raise _TryAgain(error.retry_after)


def _outcome(row: Row, status: str, reason: str = "") -> Outcome:
    return Outcome(row.filename, row.url.strip(), status, reason=reason)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Let a full disk say where it is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or path) from None


def _place_for(filename: str, image_path: str) -> str:
    """The path to write to.

    Raises:
        ValueError: as `writable_file`, or when it would be taken for the temporary file of another.
    """
    if any(is_temporary(part) for part in normal_name(filename).split("/")):
        raise ValueError("filename is one of those that temporary files have here")
    return writable_file(image_path, filename)
