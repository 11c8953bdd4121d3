"""A table of URLs → a folder of pictures and a report. Constant memory, resumable at any moment."""

import contextlib
import errno
import hashlib
import io
import os
import queue
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from component.download.address import host_of
from component.download.failure import FetchError
from component.download.fetch import Fetcher, FetchLimits
from component.download.host_queue import HostQueue
from component.download.report import Outcome, Report
from component.download.url_table import NOTHING_FAILED, Row, read_rows
from component.image.check import check_image, shrink_image
from component.image.load import BadImageError
from component.pairs.paths import writable_file

ROWS_IN_HAND = 20_000  # read ahead, so that one slow host in the table does not hide the others behind it
IN_MEMORY_BYTES = 2**20  # of each picture under way; the rest of a larger one waits in a temporary file
MAX_RETRY_AFTER = 60.0  # seconds; who asks for more is left for another day (--retry_failed)
SILENT_IN_A_ROW = 20  # unanswered requests after which a host counts as dead for the rest of the run
FATAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # every further row would fail the same way


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
    filename: str
    url: str
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
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
) -> Iterator[Outcome]:
    """Download every row and yield what became of it, in the order in which the rows end.

    A file under its final name is whole: it is written under a hidden name beside it, decoded, and renamed. So a
    run that was cut off is continued by calling this again: rows whose file exists are skipped without a request,
    and so are rows that the report knows as failed, unless `retry_failed`.

    Args:
        train_file: CSV with the columns `url` and `filename`.
        image_path: folder to write to, made when missing; nothing is written outside it.
        report: open report; a row is added before its outcome is yielded.
        shard: (i, n): only the i-th of n disjoint parts, counted from 1. A file name always falls into the same part.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: the disk is full or read-only.
    """
    os.makedirs(image_path, exist_ok=True)
    run = _Run(settings)
    known_failures = NOTHING_FAILED if retry_failed else report.failed_rows()
    in_hand = 0
    try:
        for row in read_rows(train_file, shard, known_failures):
            outcome = _settle_without_request(row, image_path, run)
            if outcome is None:
                in_hand += 1
            else:
                yield _noted(outcome, report)
            while in_hand and (in_hand >= ROWS_IN_HAND or not run.ended.empty()):
                in_hand -= 1
                yield _noted(run.next_outcome(), report)
        while in_hand:
            in_hand -= 1
            yield _noted(run.next_outcome(), report)
    finally:
        run.queue.close()


def _settle_without_request(row: Row, image_path: str, run: "_Run") -> Outcome | None:
    """The outcome of a row that needs no request; None when it was queued for one."""
    filename, url = row.filename, row.url.strip()
    if row.kind == "repeated":
        return Outcome(filename, url, "skipped", reason="repeated")
    try:
        if row.kind == "duplicate":
            raise FetchError("duplicate_filename", "an earlier row has it with another URL")
        path = writable_file(image_path, filename)
        if os.path.exists(path) and os.path.getsize(path) > 0:
            return Outcome(filename, url, "skipped", reason="exists")
        host = host_of(url)
    except ValueError as error:
        reason = f"bad_filename: {error}"
    except FetchError as error:
        reason = str(error)
    else:
        reason = ""
    if row.failed_before:
        return Outcome(filename, url, "skipped", reason="failed_before")
    if reason:
        return Outcome(filename, url, "failed", reason=reason)
    run.queue.put(host, _Job(filename, url, path, host))
    return None


def _noted(outcome: Outcome, report: Report) -> Outcome:
    if outcome.status != "skipped":
        report.add(outcome)
    return outcome


class _Run:
    """The threads of one download: they take jobs from `queue` and put outcomes into `ended`."""

    def __init__(self, settings: DownloadSettings):
        self.settings = settings
        self.queue = HostQueue(settings.per_host)
        self.ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._fetcher = Fetcher(settings.limits, settings.per_host)
        # A big picture takes 256 MB to decode: as many at a time as there are cores, not as there are threads.
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._unanswered: Counter[str] = Counter()  # hosts that do not answer, by requests in a row
        for _ in range(settings.num_threads):
            # daemon: Ctrl-C need not wait for a hanging server, and no thread leaves a half file under a final name
            threading.Thread(target=self._work, daemon=True).start()

    def next_outcome(self) -> Outcome:
        ended = self.ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _work(self) -> None:
        while (job := self.queue.take()) is not None:
            try:
                self.ended.put(self._attempt(job))
            except _TryAgain as again:
                self.queue.put(job.host, job, again.delay)
            except BaseException as error:  # a fault of ours or of the disk: the caller must hear of it, and stop
                self.ended.put(error)
            finally:
                self.queue.done(job.host)

    def _attempt(self, job: _Job) -> Outcome:
        """Fetch and check one picture.

        Raises:
            _TryAgain: another attempt is allowed and promises something.
            OSError: no picture can be written any more.
        """
        if self._unanswered.get(job.host, 0) >= SILENT_IN_A_ROW:
            reason = f"host_down: {SILENT_IN_A_ROW} requests in a row unanswered, this one not sent"
            return Outcome(job.filename, job.url, "failed", reason=reason)
        outcome = Outcome(job.filename, job.url, "failed")
        try:
            outcome.bytes = self._fetch_and_check(job)
            outcome.status, outcome.http_code = "ok", 200
        except FetchError as error:
            self._watch_host(job.host, error)
            self._ask_again(job, error)
            outcome.http_code, outcome.reason = error.http_code, str(error)
        except BadImageError as error:
            outcome.http_code, outcome.reason = 200, str(error)
        except OSError as error:
            if error.errno in FATAL_ERRNO:
                raise
            outcome.reason = f"disk: {error.strerror}"
        except Exception as error:  # one strange picture must not end a night's run, nor go unnoticed
            outcome.reason = f"internal_error: {type(error).__name__}: {error}"
        outcome.seconds = job.seconds
        return outcome

    def _fetch_and_check(self, job: _Job) -> int:
        """Put the picture under its final name; returns its size in bytes and adds the time spent to the job."""
        started = time.monotonic()
        try:
            with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as body, io.BytesIO() as small:
                self._fetcher.fetch(job.url, body, self.settings.limits.timeout - job.seconds)
                self._unanswered.pop(job.host, None)
                with self._decoding:
                    if self.settings.resize:
                        shrink_image(body, small, self.settings.resize)
                    else:
                        check_image(body)
                return _write_whole(small if self.settings.resize else body, job.path)
        finally:
            job.seconds += time.monotonic() - started

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


def _write_whole(content: BinaryIO, path: str) -> int:
    """Write a file that appears under its name only when it is whole; returns its size in bytes."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # The temporary name depends on the name alone: what a killed run left behind is overwritten by the resumed one.
    part = os.path.join(folder, f".{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.part")
    content.seek(0)
    try:
        with open(part, "wb") as file:
            shutil.copyfileobj(content, file)
            size = file.tell()
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    return size
