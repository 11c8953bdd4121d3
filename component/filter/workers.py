"""Checks pairs in worker processes, and yields what they find in order."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from component.filter.rules import Finding, PairCheck
from component.ground.cores import usable_cores
from component.ground.processes import worker_pool
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
    chunks, tasks, findings = deque(), deque(), []
    with worker_pool(num_workers) as pool:
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
