"""A table of pairs → a verdict on each row, in order, in constant memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from component.filter.rules import Finding, PairCheck
from component.filter.workers import Chunk, checked
from component.image.perceptual_hash import NearDuplicates
from component.pairs.image_stores import ImageFolder
from component.pairs.paths import normal_name
from component.pairs.table import read_table
from component.pairs.table_files import pair_files

COLUMNS = ("text", "filename")
CHUNK_ROWS = 1024  # read, scored and written together

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
    image_path: str,
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
        image_path: folder of the images.
        score: (captions, pixels of `Finding`) → similarities of the pairs that pass the rules; called once per chunk.
        min_score: drop pairs with a lower similarity; None keeps all.
        num_workers: processes; by default one per core that this process may use.
        columns: see `read_table`.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    duplicates = _Duplicates(check)
    images = ImageFolder(image_path)
    chunks = (Chunk(train_file, images, rows) for rows in _chunks(train_file, columns))
    for (_, _, chunk), findings in checked(chunks, check, num_workers):
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
