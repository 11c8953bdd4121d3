"""The worker processes of a download and their jobs: if a process is killed, only its time is lost."""

import errno
import math
import multiprocessing
import os
import queue
import threading
import zlib
from dataclasses import replace

from component.download.decoding import NOTHING
from component.download.job import Answer, DownloadSettings, Ended, IsNetworkAway, Job
from component.download.network import Network
from component.download.outcome import Outcome
from component.download.report import Report
from component.download.worker import GRACE_SECONDS, work
from component.ground.cores import usable_cores
from component.ground.files import sweep

HOSTS_IN_TURN = 4096  # are assigned evenly and remembered; further hosts are assigned by a hash
MOST_KILLS = 2  # processes that one image may kill; the second time, it was decoded alone
CLOSING_SECONDS = GRACE_SECONDS + 10.0  # extra time for files being written
DEATHS_IN_A_ROW = 3  # without a finished job in between: the process will never finish one


class Processes:
    """One process per usable core, each with at least as many threads as one host may use.

    All rows of a host go to the same process, which can therefore watch the host and enforce its limit. A process
    starts when it is first needed and ends with this one, however this one ends. A context manager.

    Attributes:
        ended: queue with, for each job, its outcome, which is already in the report, or an error that ends the run.
    """

    def __init__(self, settings: DownloadSettings, report: Report):
        cores = usable_cores()
        count = max(1, min(cores, settings.num_threads // settings.per_host))
        self.ended: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        self.report, self._network = report, Network(settings)
        each = replace(settings, num_threads=settings.num_threads // count)
        self._processes = [_Process(each, math.ceil(cores / count), self) for _ in range(count)]
        self._hosts: dict[str, int] = {}

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        """End the processes after the images in progress, or after GRACE_SECONDS."""
        for process in self._processes:
            process.ask_to_end()
        for process in self._processes:
            process.join()

    def put(self, job: Job) -> None:
        """Queue a job. Raises OSError if no process can be started."""
        self._processes[self._index_for(job) % len(self._processes)].put(job)

    def next_outcome(self) -> Outcome:
        """Wait for the next outcome and return it. Raises the error that ends the run."""
        ended = self.ended.get()
        if isinstance(ended, Exception):
            raise ended
        if ended.digest:
            self.report.count_content(ended)
        return ended

    def _index_for(self, job: Job) -> int:
        if not job.host:
            return job.number
        if len(self._hosts) < HOSTS_IN_TURN:
            return self._hosts.setdefault(job.host, len(self._hosts))  # in one step: any thread may put a job
        return self._hosts.get(job.host, zlib.crc32(job.host.encode()))

    def answer(self, question: IsNetworkAway, job: Job) -> Answer:
        """Answer a process."""
        try:
            return Answer(question.number, self._network.is_away(job.address, question))
        except OSError as error:
            self.end(error)
            return Answer(question.number, True)

    def take(self, result: Outcome | Exception | Job, job: Job) -> None:
        """Take the result of a job from a process."""
        if isinstance(result, Outcome) and result.http_code:
            self._network.answered(job.address)
        self.end(result)

    def end(self, result: Outcome | Exception | Job) -> None:
        """Hand over an outcome or the error that ends the run; queue a job for its host."""
        if not isinstance(result, Job):
            self.ended.put(result)
            return
        try:
            self.put(result)
        except OSError as error:
            self.ended.put(error)


class _Process:
    """One process, the thread that listens to it, and its unfinished jobs."""

    def __init__(self, settings: DownloadSettings, decoders: int, run: Processes):
        self._settings, self._decoders, self._run = settings, decoders, run
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()  # guards the pipe, which is replaced together with the process
        self._process, self._is_closed, self._deaths = None, False, 0

    def put(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.number] = job
            if self._process is None:
                self._start()
            self._send(job)

    def ask_to_end(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._send(None)

    def join(self) -> None:
        if self._process is not None:
            self._process.join(CLOSING_SECONDS)
            self._process.kill()
            self._listener.join()
            self._pipe.close()

    def _start(self) -> None:
        # spawn: a forked child would inherit the locks of the other threads, and their sockets.
        context = multiprocessing.get_context("spawn")
        try:
            self._decoded = context.RawArray("q", self._decoders)
            self._pipe, far_end = context.Pipe()
            with far_end:
                arguments = far_end, self._settings, self._run.report.path, self._decoded
                process = context.Process(target=work, args=arguments, daemon=True, name="download")
                process.start()
        except OSError as error:
            raise OSError(errno.ENOMEM, f"a process of the download cannot start: {error.strerror}") from None
        self._process = process
        self._listener = threading.Thread(target=self._listen, daemon=True, name="download")
        self._listener.start()

    def _send(self, message: Job | Answer | None) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # the process was killed; its jobs go to the next one, if one is started
            pass

    def _listen(self) -> None:
        """Answer the messages of the process until it ends."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):  # OSError: it was killed in the middle of a message
                break
            if isinstance(message, Ended):
                self._deaths = 0
                self._run.take(message.result, self._jobs.pop(message.number))
            else:
                answer = self._run.answer(message, self._jobs[message.number])
                with self._lock:
                    self._send(answer)
        with self._lock:
            if not self._is_closed:
                self._replace()

    def _replace(self) -> None:
        """Move the jobs of a killed process to a new one, except for an image that killed two processes."""
        self._process.join()
        self._pipe.close()
        self._deaths += 1
        try:
            for number in set(self._decoded) - {NOTHING}:
                job = self._jobs[number]
                job.kills += 1
                if job.kills == MOST_KILLS:
                    outcome = job.outcome("failed", "decoder_killed: twice, perhaps for lack of memory")
                    outcome.http_code = 200
                    self._run.report.add(outcome)
                    del self._jobs[number]
                    self._deaths = 0
                    self._run.end(outcome)
            if self._deaths == DEATHS_IN_A_ROW:
                raise OSError(errno.ENOMEM, "a process of the download ends again and again; too little memory?")
            self._start()
        except OSError as error:
            self._run.end(error)
            return
        for folder in {os.path.dirname(job.path) for job in self._jobs.values()}:
            sweep(folder)
        for job in self._jobs.values():
            self._send(job)
