"""How a run ends: by SIGTERM or SIGINT, which save a checkpoint first; by the loss of a process; in peace."""

import atexit
import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Slurm signals every process of a job, and torchrun, being one of them, passes it on to its workers: within this time
# that is one signal.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(Exception):
    """Raised out of `Trainer.train` after a signal, when the checkpoint is on disk.

    Attributes:
        signal: `signal.Signals` that some process received.
    """

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")


class RunFailed(OSError):
    """Raised out of `Trainer.train` and `evaluate`: in one line, why this run cannot go on."""


class LostProcess(RunFailed):
    """Another process of the run is gone, or one that loads data for it."""


class SaveAndStop(TrainerCallback):
    """While `listening`, a signal makes training save at the end of its step, and raise `Interrupted`.

    A second signal ends the process at once.

    All processes must stop after the same step, but the signal reaches them at different moments, or only one of
    them. So they take the maximum of what they have received, in every step: of one number on the CPU (gloo), so that
    no GPU waits, and looked at one step later, so that no process does either.
    """

    def __init__(self):
        self._received = 0
        self._stopping = 0  # what all processes agreed on
        self._is_last_save = False
        self._group = self._reduction = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals; outside of it they end the process as they always do."""
        if threading.current_thread() is not threading.main_thread():  # Python delivers signals there only
            yield
            return
        atexit.register(_kill_workers)
        handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if not self._received:
            self._received, self._time = number, time.monotonic()
            logger.warning(
                "%s: saving a checkpoint, then the run stops. A second signal ends it at once.",
                signal.Signals(number).name,
            )
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self._time > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    def _agree(self) -> int:
        """The signal that some process had received one step ago, the same on all; 0: none."""
        if self._group is None:
            return self._received
        agreed = 0
        if self._reduction is not None:
            self._reduction.wait()
            agreed = int(self._number)
        self._number = torch.tensor(self._received)
        self._reduction = dist.all_reduce(self._number, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _leave_group(self) -> None:
        if self._group is None:
            return
        if self._reduction is not None:
            self._reduction.wait()
        dist.destroy_process_group(self._group)
        self._group = self._reduction = None

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))

    def on_train_end(self, args, state, control, **kwargs):
        self._leave_group()

    def on_step_end(self, args, state, control, **kwargs):
        self._stopping = self._stopping or self._agree()
        if state.epoch % 1:  # else on_epoch_end: the evaluation that may be due there goes into the checkpoint
            self._save_and_stop(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._save_and_stop(control)

    def _save_and_stop(self, control) -> None:
        if self._stopping:
            control.should_save = self._is_last_save = True

    def on_save(self, args, state, control, **kwargs):
        if self._is_last_save:
            self._leave_group()
            raise Interrupted(self._stopping)


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Around the work of processes: turn what torch raises when one is gone into `LostProcess`, and what one of its
    DataLoader workers raised, which comes with a traceback in its text, into the last line of that."""
    try:
        try:
            yield
        except (EOFError, ConnectionError):
            # The end of a worker's pipe may be seen before its death, of which torch then tells by a signal.
            time.sleep(1)
            raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        if not isinstance(error, RuntimeError) or "DataLoader worker" in str(error):
            name = re.search(r"killed by signal: (\w+)", f"{error} {error.__cause__}")
            raise LostProcess(
                f"a process that loads data was lost{f' ({name[1]})' if name else ''}. If memory ran out, set a lower "
                "dataloader_num_workers. Start again with resume_from_checkpoint auto."
            ) from None
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo has no class of its own
            raise
        reason = str(error).split("] ", 1)[-1].split("\n")[0].split(". ")[0]
        raise LostProcess(
            f"process {dist.get_rank()} has lost another process of this run ({reason}). Why that one ended stands "
            "further up, or on another node. Start again with resume_from_checkpoint auto."
        ) from error
    except (OSError, MemoryError) as error:
        if "DataLoader worker" not in str(error):
            raise
        line = str(error).strip().rpartition("\n")[2]
        raise type(error)(line.removeprefix(f"{type(error).__name__}: ")) from None


def leave_group() -> None:
    """Part from the other processes while Python still runs; nothing may hold the Trainer any more.

    A thread of gloo takes the GIL to free the tensors that it has sent or received. In a Python that is ending, that
    crashes or hangs the process: seen twice in 180 runs of two processes.
    """
    if dist.is_initialized():
        # The Trainer, which is full of cycles, holds the group by its model in DDP. It goes first: ended by that, the
        # group would wait for its threads while this one has the GIL.
        gc.collect()
        dist.destroy_process_group()


def ignore_signals_in_worker(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: torchrun, Slurm and Ctrl-C signal its workers too, and they must finish."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    # After an exception, Python would end them by SIGTERM and wait for them. torch would report each that is killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
