"""A worker process of a download: its threads fetch, decode and write the images, and their rows in the report.

Several processes, because the threads of one share an interpreter lock; threads in each, because they mostly wait for
the network.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import queue
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, MutableSequence
from multiprocessing.connection import Connection

from PIL import Image

from component.download.address import read_url
from component.download.decoding import DecodingSlots
from component.download.faults import OUR_ERRNO
from component.download.fetch import Fetcher
from component.download.host_queue import HostQueue
from component.download.job import Answer, DownloadSettings, Ended, IsNetworkAway, Job
from component.download.outcome import FetchError, Outcome
from component.download.patience import Patience, TryAgain
from component.download.report_rows import ReportRows
from component.ground.files import new_file
from component.image.check import check_image, shrink_image
from component.image.reading import BadImageError, read_bytes

IN_MEMORY_BYTES = 2**20  # per image in progress; larger ones go to a temporary file
FATAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS} | OUR_ERRNO  # every further row would fail the same way
KEPT_BLOCKS = 8  # blocks of Pillow's memory, at most 16 MiB each
GRACE_SECONDS = 5.0  # for the images in progress when the download stops


class Stopped(BaseException):
    """The download was stopped: there is no verdict on the image."""


def work(pipe: Connection, settings: DownloadSettings, report_path: str, decoded: MutableSequence[int]) -> None:
    """Do the jobs from the pipe until None, a signal or the end of the pipe.

    Args:
        pipe: receives Job and Answer; sends IsNetworkAway and Ended.
        report_path: the report, which exists.
        decoded: the numbers of the jobs whose images are being decoded, shared with the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then sends None
    is_over = threading.Event()
    for name in ("SIGTERM", "SIGHUP"):  # may be sent to all processes of a run at once
        if number := getattr(signal, name, None):
            signal.signal(number, lambda *_: is_over.set())
    # urllib3 warns of faults that it repairs, which would break the progress bar; `image.load` quiets Pillow likewise.
    warnings.filterwarnings("ignore", module="urllib3")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # Reuse the memory of the last pixels: returning it to the system costs a sixth of the time of several threads.
    Image.core.set_blocks_max(KEPT_BLOCKS)
    with ReportRows(report_path) as report:
        worker = _Worker(pipe, settings, report, DecodingSlots(decoded))
        threading.Thread(target=worker.listen, args=(is_over,), daemon=True, name="download").start()
        is_over.wait()
        worker.close()


class _Worker:
    def __init__(self, pipe: Connection, settings: DownloadSettings, report: ReportRows, decoding: DecodingSlots):
        self.settings, self._report, self._decoding = settings, report, decoding
        self._pipe, self._sends = pipe, threading.Lock()
        self._queue = HostQueue(settings.per_host, settings.longest_pause)
        self._fetcher = Fetcher(settings.limits, settings.per_host)
        self._patience = Patience(settings, self._queue, self._is_network_away)
        self._answers: dict[int, queue.SimpleQueue] = {}  # job number → queue for the answer it waits for
        self._writing, self._is_stopped = threading.Semaphore(settings.num_threads), False
        # daemon: the process need not wait for a server that hangs
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name="download") for _ in range(settings.num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def listen(self, is_over: threading.Event) -> None:
        """Receive messages until the pipe ends."""
        with contextlib.suppress(EOFError, OSError):  # OSError: it ends in the middle of a message
            while (message := self._pipe.recv()) is not None:
                self._take(message)
            is_over.set()
            while True:  # answers for the images that are still in progress
                self._take(self._pipe.recv())
        self._is_stopped = True
        for number in list(self._answers):
            self._answers.pop(number).put(None)
        is_over.set()

    def close(self) -> None:
        """Start nothing more; return when the images in progress are done, or after GRACE_SECONDS.

        A file whose row is already in the report still gets its final name.
        """
        self._queue.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in self._threads:
            thread.join(0.0 if self._is_stopped else max(0.0, deadline - time.monotonic()))
        self._is_stopped = True
        for _ in self._threads:
            self._writing.acquire()

    def _take(self, message: Job | Answer) -> None:
        if isinstance(message, Answer):
            self._answers.pop(message.number).put(message.is_away)
        else:
            self._queue.put(message.host, message)

    def _send(self, message: IsNetworkAway | Ended) -> None:
        with self._sends, contextlib.suppress(ConnectionError):  # the main process is gone, which listen() notices
            self._pipe.send(message)

    def _note(self, outcome: Outcome) -> None:
        """Write a row to the report."""
        if self._is_stopped:
            raise Stopped
        self._report.add(outcome)

    def _work(self) -> None:
        with contextlib.suppress(Stopped):
            while (job := self._queue.take()) is not None:
                host = job.host
                try:
                    self._send(Ended(job.number, self._attempt(job)))
                except TryAgain as again:
                    if job.host == host:
                        self._queue.put(host, job, again.delay)
                    else:
                        self._send(Ended(job.number, job))
                except Exception as error:  # of the disk or this machine: the main process must stop the run
                    self._send(Ended(job.number, _portable(error)))
                finally:
                    self._queue.done(host)

    def _attempt(self, job: Job) -> Outcome:
        """Verify one image, or fetch and check it; the outcome is in the report unless the row is skipped.

        Raises:
            TryAgain: another attempt is allowed and may succeed.
            OSError: images can no longer be written.
        """
        outcome, started = job.outcome("failed"), time.monotonic()
        try:
            if job.address is None:
                self._verify(job, outcome)
            elif job.host in self._patience.given_up:
                outcome.reason = self._patience.given_up[job.host]
            else:
                self._fetch(job, outcome)
        except FetchError as error:
            outcome.http_code, outcome.reason = error.http_code, str(error)
            self._patience.ask_again(job, error, started)
        except BadImageError as error:
            outcome.http_code, outcome.reason = 200, str(error)
        except MemoryError:
            outcome.reason = "no_memory: too little for this image"
        except OSError as error:
            if error.errno in FATAL_ERRNO:
                raise
            outcome.reason = f"disk: {error.strerror or error}"
        except TryAgain:
            raise
        except Exception as error:  # one strange image must neither end a long run nor go unnoticed
            outcome.reason = f"internal_error: {type(error).__name__}: {error}"
        if outcome.reason and outcome.status != "skipped":
            outcome.status, outcome.bytes, outcome.seconds = "failed", 0, job.seconds
            self._note(outcome)
        return outcome

    def _verify(self, job: Job, outcome: Outcome) -> None:
        """Decode an existing file.

        Raises:
            TryAgain: it is broken, and must be fetched from its host.
        """
        try:
            with self._decoding.holding(job):
                check_image(content := read_bytes(job.path))
            outcome.status, outcome.bytes = "verified", len(content)
        except BadImageError:
            if job.failed_before:
                outcome.status, outcome.reason = "skipped", "failed_before"
                return
            job.address = read_url(job.mended_url)
            raise TryAgain from None
        self._note(outcome)

    def _fetch(self, job: Job, outcome: Outcome) -> None:
        """Fetch the image, give it its final name, and add the time spent to the job."""
        started = time.monotonic()
        try:
            with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as body:
                self._fetcher.fetch(job.address, body, self.settings.limits.timeout - job.seconds)
                self._queue.answered(job.host)
                with self._decoding.holding(job):
                    body.seek(0)
                    content = body.read()
                    if self.settings.resize:
                        shrink_image(content, shrunk := io.BytesIO(), self.settings.resize)
                        content = shrunk.getvalue()
                    else:
                        check_image(content)
            outcome.status, outcome.http_code, outcome.bytes = "ok", 200, len(content)
            outcome.seconds = job.seconds + time.monotonic() - started
            with self._writing:
                self._write(content, job, outcome)
        finally:
            job.seconds += time.monotonic() - started

    def _write(self, content: bytes, job: Job, outcome: Outcome) -> None:
        folder = os.path.dirname(job.path)
        if not os.path.isdir(folder):  # makedirs would lock the parent folder each time
            os.makedirs(folder, exist_ok=True)
        with _named(job.path), new_file(job.path, "wb", sync=False) as file:
            file.write(content)
            file.flush()  # raises if the disk is full
            # Before the file gets its name, so that every file has its row, however this process ends. A row whose
            # file is missing is downloaded again.
            outcome.digest = hashlib.blake2b(content, digest_size=8).digest()
            self._note(outcome)

    def _is_network_away(self, job: Job, error: FetchError) -> bool:
        """Ask the main process."""
        answer = self._answers[job.number] = queue.SimpleQueue()
        if self._is_stopped:
            raise Stopped
        self._send(IsNetworkAway(job.number, error.is_local, error.reason == "dns"))
        if (is_away := answer.get()) is None:
            raise Stopped
        return is_away


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Add the path to the error of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or path) from None


def _portable(error: Exception) -> Exception:
    """The error in a form that can be sent to another process."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")
