"""Worker processes that end with this one, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from component.ground.cores import usable_cores

T = TypeVar("T")


def ordered_results(
    function: Callable[..., T], tasks: Iterable[tuple[Any, ...]], num_workers: int | None, tasks_ahead: int
) -> Iterator[T]:
    """Yield `function(*task)` for each task, in order, computed by worker processes.

    Tasks that have not begun are cancelled when the iterator is closed.

    Args:
        num_workers: None: one per core that this process may use.
        tasks_ahead: number of tasks per process that are taken before their results are asked for.

    Raises:
        OSError: a worker process died.
    """
    num_workers = num_workers or usable_cores()
    # spawn: a forked child would inherit the locks of the threads that torch runs in this process.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_live_as_parent)
    begun: deque = deque()
    with pool:
        try:
            for task in tasks:
                begun.append(pool.submit(function, *task))
                if len(begun) > tasks_ahead * num_workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
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
