"""The processes of a download, and what each has in hand: one that is killed costs nothing but its time."""

import errno
import math
import multiprocessing
import os
import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace

from component.download.outcome import Outcome
from component.download.report import Report
from component.download.worker import NOTHING, THIS_DISK, DownloadSettings, Job, ToNote, serve
from component.ground.cores import usable_cores
from component.ground.files import sweep

HOSTS_IN_TURN = 4096  # are dealt out evenly, and remembered; further ones by a hash of their names
MOST_KILLS = 2  # of processes by one image, the second time while no other was decoded
CLOSING_SECONDS = 10.0  # for files that are being written; a disk that hangs has longer ones
DEATHS_IN_A_ROW = 3  # of one process that ended no job meanwhile: nothing will come of it


class Processes:
    """One process per core that this one may use, but none with fewer threads than one host may take.

    A host's rows all go to one process, which so knows how the host fares, and asks it for no more at once than it
    may. Each process is started when it is first needed, and ends with this one, however that ends.

    Attributes:
        ended: of each job that was put, its outcome, which stands in the report; or an error that ends the run.
    """

    def __init__(self, settings: DownloadSettings, report: Report):
        cores = usable_cores()
        count = max(1, min(cores, settings.num_threads // settings.per_host))
        self.ended: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        each = replace(settings, num_threads=settings.num_threads // count)
        self._processes = [_Process(each, math.ceil(cores / count), report, self._end) for _ in range(count)]
        self._hosts: dict[str, int] = {}

    def put(self, job: Job) -> None:
        """Have a job done. Raises OSError where no process can be started."""
        self._processes[self._place_of(job) % len(self._processes)].put(job)

    def close(self) -> None:
        """End the processes, each after the files it is writing; what waits is left behind."""
        for process in self._processes:
            process.ask_to_end()
        for process in self._processes:
            process.join()

    def _place_of(self, job: Job) -> int:
        if job.host == THIS_DISK:
            return job.number
        if job.host not in self._hosts and len(self._hosts) < HOSTS_IN_TURN:
            self._hosts[job.host] = len(self._hosts)
        return self._hosts.get(job.host, zlib.crc32(job.host.encode()))

    def _end(self, result: Outcome | Exception | Job) -> None:
        if not isinstance(result, Job):
            self.ended.put(result)
            return
        try:
            self.put(result)
        except OSError as error:
            self.ended.put(error)


class _Process:
    """One process, the thread that listens to it, and the jobs it has in hand."""

    def __init__(self, settings: DownloadSettings, decoders: int, report: Report, end: Callable):
        self._settings, self._decoders, self._report, self._end = settings, decoders, report, end
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()  # of what goes into the pipe, and of which pipe that is
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
                arguments = far_end, self._settings, self._decoded
                process = context.Process(target=serve, args=arguments, daemon=True, name="download")
                process.start()
        except OSError as error:
            raise OSError(errno.ENOMEM, f"a process of the download cannot start: {error.strerror}") from None
        self._process = process
        self._listener = threading.Thread(target=self._listen, daemon=True, name="download")
        self._listener.start()

    def _send(self, message: Job | tuple[int, OSError | None] | None) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # it has been killed: what it has in hand goes to the next one, if there is to be one
            pass

    def _listen(self) -> None:
        """Do what the process asks for, until it ends."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, ConnectionError):
                break
            if isinstance(message, ToNote):
                answer = message.number, self._note(message)
                with self._lock:
                    self._send(answer)
            else:
                del self._jobs[message.number]
                self._deaths = 0
                self._end(message.result)
        with self._lock:
            if not self._is_closed:
                self._replace()

    def _note(self, message: ToNote) -> OSError | None:
        try:
            self._report.add(message.outcome, message.digest)
        except OSError as error:
            return error
        return None

    def _replace(self) -> None:
        """Another process takes what the one that was killed had in hand, but for an image that did it."""
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
                    self._report.add(outcome)
                    del self._jobs[number]
                    self._deaths = 0
                    self._end(outcome)
            if self._deaths == DEATHS_IN_A_ROW:
                raise OSError(errno.ENOMEM, "a process of the download ends again and again; too little memory?")
            self._start()
        except OSError as error:
            self._end(error)
            return
        for folder in {os.path.dirname(job.path) for job in self._jobs.values()}:
            sweep(folder)
        for job in self._jobs.values():
            self._send(job)
