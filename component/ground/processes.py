"""A pool of worker processes that end with this one, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose tasks are cancelled when the block ends.

    Raises:
        OSError: a worker process died.
    """
    # spawn: a forked child would inherit the locks of the threads that torch runs in this process.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_live_as_parent)
    with pool:
        try:
            yield pool
        except (BrokenProcessPool, MemoryError):
            raise OSError("a worker process was killed, perhaps for lack of memory; try --num_workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _live_as_parent() -> None:
    # Ctrl-C is for the parent alone; the workers end with it, however it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # waits on a pipe that the kernel closes, also after SIGKILL
    os._exit(1)
