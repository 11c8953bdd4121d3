"""How a training ends before its time: a signal saves a checkpoint first, a lost process is named in one line."""

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

from component.ground.command import TRY_AGAIN

logger = logging.getLogger(__name__)

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = tuple(filter(None, (signal.SIGTERM, signal.SIGINT, SIGHUP)))
# Slurm signals every process of a job, and torchrun, which is one of them, passes the signal on to its workers. Two
# signals within this time are one.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(Exception):
    """Raised by `Trainer.train` after a signal, once the checkpoint is on disk.

    Attributes:
        signal: the `signal.Signals` that a process received.
    """

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")


class RunFailed(OSError):
    """Raised by `Trainer.train` and `evaluate`: why this run cannot continue, in one line."""


class LostProcess(RunFailed):
    """Another process of the run, or one of its DataLoader workers, has died."""

    status = TRY_AGAIN


class SaveAndStop(TrainerCallback):
    """While `listening`, a signal makes training save a checkpoint after the current step and raise `Interrupted`.

    A second SIGTERM or SIGINT ends the process at once.

    All processes must stop after the same step, but they receive the signal at different moments, or only one of them
    does. In every step they therefore reduce the signals received so far to their maximum: one number on the CPU
    (gloo), so that no GPU waits, and read one step later, so that no process waits either.
    """

    def __init__(self):
        self._received = 0
        self._agreed = 0  # the signal that all processes stop for
        self._is_last_save = False
        self._group = self._reduction = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals in this block; outside of it they have their usual effect."""
        if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread
            yield
            return
        atexit.register(_kill_workers)
        # nohup ignores SIGHUP, so that the run outlives its terminal. Shells also ignore SIGINT for a background job,
        # which the user did not ask for.
        caught = [number for number in SIGNALS if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, self._receive) for number in caught}
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
        elif number == SIGHUP:  # a closed terminal often sends two: one by the shell, one by the kernel
            return
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self._time > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    def _agree(self) -> int:
        """The signal that any process had received one step ago, the same on all processes; 0 if there was none."""
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
        self._agreed = self._agreed or self._agree()
        if state.epoch % 1:  # otherwise on_epoch_end, so that the checkpoint has the evaluation that may be due there
            self._save_if_agreed(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._save_if_agreed(control)

    def _save_if_agreed(self, control) -> None:
        if self._agreed:
            control.should_save = self._is_last_save = True

    def on_save(self, args, state, control, **kwargs):
        if self._is_last_save:
            self._leave_group()
            raise Interrupted(self._agreed)


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Turn what torch raises after a process has died into `LostProcess`, and an error that a user can mend in a
    DataLoader worker, whose text is a traceback, into its last line."""
    try:
        try:
            yield
        except (EOFError, ConnectionResetError, ConnectionRefusedError):
            # The end of a worker's pipe can be seen before its death, which torch reports by a signal.
            time.sleep(1)
            raise
    except (EOFError, ConnectionResetError, ConnectionRefusedError) as error:
        raise _lost_worker(error) from None
    except RuntimeError as error:
        if "DataLoader worker (pid" in str(error):
            raise _lost_worker(error) from None
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo has no class of its own
            raise
        reason = str(error).split("] ", 1)[-1].split("\n")[0].split(". ")[0]
        raise LostProcess(
            f"process {dist.get_rank()} has lost another process of this run ({reason}). The reason is further up in "
            "the log, or on another node. Start again with resume_from_checkpoint auto."
        ) from error
    except (OSError, ValueError, MemoryError) as error:
        if "DataLoader worker" not in str(error):
            raise
        line = str(error).strip().rpartition("\n")[2]
        raise type(error)(line.removeprefix(f"{type(error).__name__}: ")) from None


def _lost_worker(error: Exception) -> LostProcess:
    name = re.search(r"killed by signal: (\w+)", f"{error} {error.__cause__}")
    return LostProcess(
        f"a process that loads data was lost{f' ({name[1]})' if name else ''}. If memory ran out, set a lower "
        "dataloader_num_workers. Start again with resume_from_checkpoint auto."
    )


def leave_group() -> None:
    """Leave the process group while Python still runs; nothing may refer to the Trainer any more.

    A gloo thread takes the GIL to free the tensors that it has sent or received. While Python shuts down, that crashes
    or hangs the process: seen twice in 180 runs of two processes.
    """
    if dist.is_initialized():
        # The Trainer is full of cycles and holds the group through its DDP model, so it is collected first: destroyed
        # by the collector, the group would wait for its threads while this thread holds the GIL.
        gc.collect()
        dist.destroy_process_group()


def ignore_signals_in_worker(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: torchrun, Slurm and terminals signal workers too, which must finish."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    # After an exception, Python would send them SIGTERM, which they ignore, and wait. torch would report each death.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
