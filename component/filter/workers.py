"""Checks pairs in worker processes, which end with this one."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import pandas as pd

from component.filter.rules import Finding, PairCheck
from component.ground.cores import usable_cores
from component.pairs.image_stores import ImageStore

TASK_ROWS = 32  # checked by a worker process at a time
TASKS_AHEAD = 4  # per process, while a chunk is scored and written; with their pixels, 19 MB per process


class Chunk(NamedTuple):
    """Some pairs of a file: `text`, and in `filename` the locators of their images in the store."""

    file: str
    store: ImageStore
    rows: pd.DataFrame


def checked(
    table: Iterator[Chunk], check: PairCheck, num_workers: int | None = None
) -> Iterator[tuple[Chunk, list[Finding]]]:
    """Yield the chunks and their findings in order, while the worker processes check the following rows.

    Args:
        num_workers: by default one per core that this process may use.

    Raises:
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    num_workers = num_workers or usable_cores()
    # spawn: a forked child would inherit the locks of the threads that torch runs in this process.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_live_as_parent)
    chunks, tasks, findings = deque(), deque(), []
    with pool:
        try:
            for chunk in table:
                chunks.append(chunk)
                texts, locators = chunk.rows["text"].tolist(), chunk.rows["filename"].tolist()
                for start in range(0, len(texts), TASK_ROWS):
                    rows = slice(start, start + TASK_ROWS)
                    tasks.append(pool.submit(check, chunk.store, texts[rows], locators[rows]))
                    if len(tasks) > TASKS_AHEAD * num_workers:
                        while len(findings) == len(chunks[0].rows):  # at once for a chunk without rows
                            yield chunks.popleft(), findings
                            findings = []
                        findings += tasks.popleft().result()
            for chunk in chunks:
                while len(findings) < len(chunk.rows):
                    findings += tasks.popleft().result()
                yield chunk, findings
                findings = []
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
