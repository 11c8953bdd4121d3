"""A table of pairs → a verdict on each row, in order, in constant memory."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from component.filter.rules import FilterRules, Finding
from component.filter.workers import CHUNK_ROWS, Chunk, checked_chunks
from component.image.perceptual_hash import NearDuplicates
from component.pairs.image_stores import ImageFolder
from component.pairs.paths import normal_name
from component.pairs.table import read_table
from component.pairs.table_files import pair_files

if TYPE_CHECKING:  # judging without a model needs no torch
    from component.filter.clip_score import ClipScorer

COLUMNS = ("text", "filename")


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
    image_path: str,
    rules: FilterRules,
    scorer: "ClipScorer | None" = None,
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
        image_path: folder of the images.
        scorer: measures the similarities of the pairs that pass the rules.
        min_score: drop pairs with a lower similarity; None keeps all.
        num_workers: processes; by default one per core that this process may use.
        columns: see `read_table`.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    duplicates = _Duplicates(rules)
    images = ImageFolder(image_path)
    chunks = (Chunk(train_file, images, rows) for rows in _chunks(train_file, columns))
    for (_, _, rows), findings, scores in checked_chunks(chunks, rules, scorer, num_workers):
        reasons = [finding.reason for finding in findings]
        for row, score in scores.items():
            if min_score is not None and not score >= min_score:
                reasons[row] = f"dissimilar: {score:.3f}"
        for row, (filename, finding) in enumerate(zip(rows["filename"].tolist(), findings, strict=True)):
            reasons[row] = reasons[row] or duplicates.reason(filename, finding)
        yield rows, reasons


class _Duplicates:
    """Remembers the pairs that are kept, and finds the later ones that repeat them."""

    def __init__(self, rules: FilterRules):
        self._rules = rules
        self._digests: set[int] = set()
        self._images = NearDuplicates()

    def reason(self, filename: str, finding: Finding) -> str:
        """Why this pair is dropped; "" if it is kept, and then remembered."""
        if self._rules.exact_duplicates:
            digest = hash((finding.text_digest, finding.image_digest))
            if digest in self._digests:
                return "exact_duplicate"
            self._digests.add(digest)
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
