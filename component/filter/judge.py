"""A table of pairs → a verdict on each row, in order, in constant memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd

from component.filter.rules import Finding, PairCheck
from component.ground.cores import usable_cores
from component.image.perceptual_hash import NearDuplicates
from component.pairs.paths import normal_name
from component.pairs.table import read_table
from component.pairs.table_files import pair_files

COLUMNS = ("text", "filename")
CHUNK_ROWS = 1024  # read, scored and written together
TASK_ROWS = 32  # checked by a worker process at a time
TASKS_AHEAD = 4  # per process, while a chunk is scored and written; with their pixels, 19 MB per process

Scorer = Callable[[Sequence[str], Sequence[np.ndarray]], Sequence[float]]


def count_rows(train_file: str, columns: Mapping[str, str] | None = None) -> int:
    """Number of rows. Reads the whole table, so that a malformed row is found before the work starts.

    Args:
        train_file, columns: as for `judge_pairs`.
    """
    files = pair_files(train_file)
    return sum(
        len(chunk) for file in files for chunk in read_table(file, COLUMNS, only_required=True, columns=columns)
    )


def judge_pairs(
    train_file: str,
    check: PairCheck,
    score: Scorer | None = None,
    min_score: float | None = None,
    num_workers: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    """Yield the table in order, in chunks, with a reason for each row: "" if it is kept.

    The rules come first, then the score, then duplicates of the rows that are kept: a pair whose caption is wrong must
    not push out its twin whose caption is right.

    Args:
        train_file: table with a column of captions and one of file names, and any others; a folder of such tables,
            or a pattern, as for `pair_files`.
        score: (captions, pixels of `Finding`) → similarities of the pairs that pass the rules; called once per chunk.
        min_score: drop pairs with a lower similarity; None keeps all.
        num_workers: processes; by default one per core that this process may use.
        columns: see `read_table`.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    duplicates = _Duplicates(check)
    for chunk, findings in _checked(_chunks(train_file, columns), check, num_workers or usable_cores()):
        reasons = [finding.reason for finding in findings]
        texts, filenames = chunk["text"].tolist(), chunk["filename"].tolist()
        good = [row for row, reason in enumerate(reasons) if not reason]
        if score and good:
            similarities = score([texts[row] for row in good], [findings[row].pixels for row in good])
            for row, similarity in zip(good, similarities, strict=True):
                if min_score is not None and not similarity >= min_score:
                    reasons[row] = f"dissimilar: {similarity:.3f}"
        for row, (filename, finding) in enumerate(zip(filenames, findings, strict=True)):
            reasons[row] = reasons[row] or duplicates.reason(filename, finding)
        yield chunk, reasons


class _Duplicates:
    """Remembers the pairs that are kept, and finds the later ones that repeat them."""

    def __init__(self, check: PairCheck):
        self._rules = check.rules
        self._digests: set[int] = set()
        self._images = NearDuplicates()

    def reason(self, filename: str, finding: Finding) -> str:
        """Why this pair is dropped; "" if it is kept, and then remembered."""
        if self._rules.exact_duplicates:
            if finding.digest in self._digests:
                return "exact_duplicate"
            self._digests.add(finding.digest)
        if self._rules.near_duplicates:
            name = hash(normal_name(filename))
            owner = self._images.find(finding.looks)
            if owner is None:
                self._images.add(finding.looks, name)
            elif owner != name:  # another caption of the same image is not a duplicate
                return "near_duplicate"
        return ""


def _chunks(train_file: str, columns: Mapping[str, str] | None) -> Iterator[pd.DataFrame]:
    names = None
    for file in pair_files(train_file):
        for chunk in read_table(file, COLUMNS, columns=columns, chunk_rows=CHUNK_ROWS):
            if names not in (None, list(chunk)):
                raise ValueError(
                    f"{file} has the columns {', '.join(chunk)}, the tables before it {', '.join(names)}: they cannot "
                    "be written into one table. Filter them one by one."
                )
            names = list(chunk)
            yield chunk


def _checked(
    table: Iterator[pd.DataFrame], check: PairCheck, num_workers: int
) -> Iterator[tuple[pd.DataFrame, list[Finding]]]:
    """Yield the chunks and their findings in order, while the worker processes check the following rows."""
    # spawn: a forked child would inherit the locks of the threads that torch runs in this process.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_live_as_parent)
    chunks, tasks, findings = deque(), deque(), []
    with pool:
        try:
            for chunk in table:
                chunks.append(chunk)
                texts, filenames = chunk["text"].tolist(), chunk["filename"].tolist()
                for start in range(0, len(chunk), TASK_ROWS):
                    rows = slice(start, start + TASK_ROWS)
                    tasks.append(pool.submit(check, texts[rows], filenames[rows]))
                    if len(tasks) > TASKS_AHEAD * num_workers:
                        findings += tasks.popleft().result()
                        if len(findings) == len(chunks[0]):
                            yield chunks.popleft(), findings
                            findings = []
            for chunk in chunks:
                while len(findings) < len(chunk):
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
