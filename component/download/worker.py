"""One of the processes of a download: its threads fetch, decode and write, and whoever started it keeps the books.

A process, because the threads of one share an interpreter; threads in it, because they wait for the network.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import queue
import random
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import BinaryIO, NamedTuple

from PIL import Image

from component.download.address import host_of
from component.download.connection import BLOCK_BYTES
from component.download.fetch import OUR_ERRNO, Fetcher, FetchLimits
from component.download.host_queue import HostQueue
from component.download.outcome import FetchError, Outcome
from component.ground.files import new_file
from component.image.check import check_image, shrink_image
from component.image.load import BadImageError, read_bytes

IN_MEMORY_BYTES = 2**20  # of each image under way; the rest of a larger one waits in a temporary file
MAX_RETRY_AFTER = 60.0  # seconds; who asks for more is left for another day (--retry_failed)
SILENT_IN_A_ROW = 20  # unanswered requests after which a host counts as dead for the rest of the run
FATAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS} | OUR_ERRNO  # every further row would fail the same way
THIS_DISK = ""  # the host of files that are there and wait to be verified
KEPT_BLOCKS = 8  # of Pillow's, at most 16 MiB each
NOTHING = 0  # in a place where one decodes: nobody does


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
class Job:
    """A file to be fetched, or to be verified where `host` is THIS_DISK.

    Attributes:
        number: from 1, which no other job of the run has.
        kills: of processes, while they decoded this image.
    """

    number: int
    filename: str
    url: str
    path: str
    host: str
    failed_before: bool
    attempts: int = 0
    seconds: float = 0.0
    kills: int = 0

    def outcome(self, status: str, reason: str = "") -> Outcome:
        return Outcome(self.filename, self.url.strip(), status, reason=reason)


class ToNote(NamedTuple):
    """A row for the report, before the file of the job has its name. It is answered by the number, and by the OSError
    that kept the row from being written, or None."""

    number: int
    outcome: Outcome
    digest: bytes


class Ended(NamedTuple):
    """What became of a job: its outcome, an error that ends the run, or the job, to be done at another host."""

    number: int
    result: Outcome | Exception | Job


class Stopped(BaseException):
    """The download has ended meanwhile: no verdict on the image, nor a fault of anybody."""


class _TryAgain(Exception):
    """The attempt failed in a way that may pass; `delay` in seconds."""

    def __init__(self, delay: float):
        self.delay = delay


def serve(pipe: Connection, settings: DownloadSettings, decoded: MutableSequence[int]) -> None:
    """Do the jobs that come, until None or the end of the pipe comes.

    Args:
        pipe: jobs and the answers to ToNote come in; ToNote and Ended go out.
        decoded: shared with the other side: the numbers of the jobs whose images are being decoded, or NOTHING. As
            many are in memory at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side; the end of the pipe is for us
    # It warns of what it repairs, in the middle of the bar; so does Pillow, which `image.load` keeps quiet.
    warnings.filterwarnings("ignore", module="urllib3")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # Pixels of the last image make room for the next: many threads that each return them cost a sixth of the time.
    Image.core.set_blocks_max(KEPT_BLOCKS)
    worker = _Worker(pipe, settings, decoded)
    with contextlib.suppress(EOFError, ConnectionError):
        while (message := pipe.recv()) is not None:
            worker.take(message)
    worker.stop()


class _Worker:
    def __init__(self, pipe: Connection, settings: DownloadSettings, decoded: MutableSequence[int]):
        self.settings, self._pipe, self._sends = settings, pipe, threading.Lock()
        self._queue = HostQueue(settings.per_host)
        self._fetcher = Fetcher(settings.limits, settings.per_host)
        self._decoding = _Decoding(decoded)
        self._unanswered: Counter[str] = Counter()  # hosts that do not answer, by requests in a row
        self._notes: dict[int, queue.SimpleQueue] = {}  # of the jobs that wait for their rows
        self._writing, self._is_stopped = threading.Semaphore(settings.num_threads), False
        for _ in range(settings.num_threads):
            # daemon: nobody need wait for a hanging server
            threading.Thread(target=self._work, daemon=True, name="download").start()

    def take(self, message: Job | tuple[int, OSError | None]) -> None:
        if isinstance(message, Job):
            self._queue.put(message.host, message)
        else:
            number, error = message
            self._notes.pop(number).put(error)

    def stop(self) -> None:
        """Return when no file is being written; what waits is left behind."""
        self._is_stopped = True
        self._queue.close()
        for number in list(self._notes):
            self._notes.pop(number).put(Stopped())
        for _ in range(self.settings.num_threads):
            self._writing.acquire()

    def _send(self, message: ToNote | Ended) -> None:
        with self._sends, contextlib.suppress(ConnectionError):  # the other side is gone, and take() will hear of it
            self._pipe.send(message)

    def _work(self) -> None:
        with contextlib.suppress(Stopped):
            while (job := self._queue.take()) is not None:
                host = job.host
                try:
                    self._send(Ended(job.number, self._attempt(job)))
                except _TryAgain as again:
                    if job.host == host:
                        self._queue.put(host, job, again.delay)
                    else:
                        self._send(Ended(job.number, job))
                except Exception as error:  # of the disk or of this machine: the caller must hear of it, and stop
                    self._send(Ended(job.number, _portable(error)))
                finally:
                    self._queue.done(host)

    def _note(self, job: Job, outcome: Outcome, digest: bytes = b"") -> None:
        """Return when the outcome stands in the report. Raises OSError where it cannot be written."""
        note = self._notes[job.number] = queue.SimpleQueue()
        if self._is_stopped:
            raise Stopped
        self._send(ToNote(job.number, outcome, digest))
        if (error := note.get()) is not None:
            raise error

    def _attempt(self, job: Job) -> Outcome:
        """Verify, or fetch and check, one image; unless it is skipped, its outcome stands in the report.

        Raises:
            _TryAgain: another attempt is allowed and promises something.
            OSError: no image can be written any more.
        """
        outcome = job.outcome("failed")
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
            self._note(job, outcome)
        return outcome

    def _verify(self, job: Job, outcome: Outcome) -> None:
        """Look into a file that is there.

        Raises:
            _TryAgain: it is broken, and now a job for its host.
        """
        try:
            with self._decoding.of(job):
                check_image(content := read_bytes(job.path))
            outcome.status, outcome.bytes = "verified", len(content)
        except BadImageError:
            if job.failed_before:
                outcome.status, outcome.reason = "skipped", "failed_before"
                return
            job.host = host_of(job.url)
            raise _TryAgain(0) from None
        self._note(job, outcome)

    def _fetch(self, job: Job, outcome: Outcome) -> None:
        """Put the image under its final name, and add the time spent to the job."""
        started = time.monotonic()
        try:
            with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as body:
                self._fetcher.fetch(job.url, body, self.settings.limits.timeout - job.seconds)
                self._unanswered.pop(job.host, None)
                content = body
                with self._decoding.of(job):
                    body.seek(0)
                    if self.settings.resize:
                        shrink_image(body.read(), content := io.BytesIO(), self.settings.resize)
                    else:
                        check_image(body.read())
                outcome.status, outcome.http_code = "ok", 200
                outcome.seconds = job.seconds + time.monotonic() - started
                with self._writing:
                    self._write(content, job, outcome)
        finally:
            job.seconds += time.monotonic() - started

    def _write(self, content: BinaryIO, job: Job, outcome: Outcome) -> None:
        folder = os.path.dirname(job.path)
        if not os.path.isdir(folder):  # makedirs alone would lock the folder around it each time
            os.makedirs(folder, exist_ok=True)
        digest = hashlib.blake2b(digest_size=8)
        content.seek(0)
        with _named(job.path), new_file(job.path, "wb", sync=False) as file:
            while block := content.read(BLOCK_BYTES):
                file.write(block)
                digest.update(block)
            file.flush()  # now a full disk shows
            outcome.bytes = file.tell()
            # Before the file has its name, so that there is none without its row, however this process ends. A row
            # whose file is not there is simply done again.
            self._note(job, outcome, digest.digest())

    def _watch_host(self, host: str, error: FetchError) -> None:
        if error.http_code is None and error.reason in ("dns", "connection", "timeout"):
            self._unanswered[host] += 1
        else:
            self._unanswered.pop(host, None)

    def _ask_again(self, job: Job, error: FetchError) -> None:
        """Raise _TryAgain when the failure may pass and the row's attempts and seconds are not used up."""
        job.attempts += 1
        if not error.may_pass or job.attempts > self.settings.retries or job.seconds >= self.settings.limits.timeout:
            return
        if error.retry_after is None:
            raise _TryAgain(2 ** (job.attempts - 1) * random.uniform(0.5, 1.5))
        if error.retry_after <= MAX_RETRY_AFTER:
            self._queue.pause(job.host, error.retry_after)  # the whole host: its other rows would hear the same
            raise _TryAgain(error.retry_after)


class _Decoding:
    """Who decodes, where the other side sees it however this process ends.

    An image that may have brought a process down is decoded while no other is.
    """

    def __init__(self, decoded: MutableSequence[int]):
        self._decoded, self._gate = decoded, threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(decoded)):
            self._free.put(place)

    @contextlib.contextmanager
    def of(self, job: Job) -> Iterator[None]:
        with self._gate:  # who waits for all places lets no other in
            places = [self._free.get() for _ in range(len(self._decoded) if job.kills else 1)]
        self._decoded[places[0]] = job.number
        try:
            yield
        finally:
            self._decoded[places[0]] = NOTHING
            for place in places:
                self._free.put(place)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Let a full disk say where it is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or path) from None


def _portable(error: Exception) -> Exception:
    """One that can be sent to another process."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")
