"""Checks pairs in worker processes and scores them here, in order."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from component.filter.rules import FilterRules, Finding, PairCheck
from component.ground.processes import ordered_results
from component.pairs.image_stores import ImageStore

if TYPE_CHECKING:  # judging without a model needs no torch
    from component.filter.clip_score import ClipScorer

CHUNK_ROWS = 1024  # read, scored and written together
TASK_ROWS = 32  # checked by a worker process at a time
TASKS_AHEAD = 4  # per process, while a chunk is scored and written; with their pixels, 19 MB per process


class Chunk(NamedTuple):
    """Some pairs of a file: `text`, and in `filename` the locators of their images in the store."""

    file: str
    store: ImageStore
    rows: pd.DataFrame


class CheckedChunk(NamedTuple):
    """A chunk with the finding on each of its pairs.

    scores: row of the chunk → cosine of its text and image, of the pairs that pass; {} without a model.
    """

    chunk: Chunk
    findings: list[Finding]
    scores: dict[int, float]


def checked_chunks(
    chunks: Iterator[Chunk], rules: FilterRules, scorer: "ClipScorer | None" = None, num_workers: int | None = None
) -> Iterator[CheckedChunk]:
    """Check the chunks and yield them in order, while the worker processes check the following rows.

    Args:
        scorer: called once per chunk.
        num_workers: by default one per core that this process may use.

    Raises:
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    check = PairCheck(rules, scorer.crop if scorer else None)
    for chunk, findings in _checked(chunks, check, num_workers):
        good = [row for row, finding in enumerate(findings) if not finding.reason]
        scores = {}
        if scorer and good:
            texts = chunk.rows["text"].iloc[good].str.strip().tolist()
            scores = dict(zip(good, scorer(texts, [findings[row].pixels for row in good]), strict=True))
        yield CheckedChunk(chunk, findings, scores)


def _checked(
    chunks: Iterator[Chunk], check: PairCheck, num_workers: int | None
) -> Iterator[tuple[Chunk, list[Finding]]]:
    waiting: deque[Chunk] = deque()

    def tasks() -> Iterator[tuple[ImageStore, list[str], list[str]]]:
        for chunk in chunks:
            waiting.append(chunk)
            texts, locators = chunk.rows["text"].tolist(), chunk.rows["filename"].tolist()
            for start in range(0, len(texts), TASK_ROWS):
                rows = slice(start, start + TASK_ROWS)
                yield chunk.store, texts[rows], locators[rows]

    findings = []
    for found in ordered_results(check, tasks(), num_workers, TASKS_AHEAD):
        while not len(waiting[0].rows):
            yield waiting.popleft(), []
        findings += found
        if len(findings) == len(waiting[0].rows):
            yield waiting.popleft(), findings
            findings = []
    for chunk in waiting:  # without rows
        yield chunk, []
