"""Verdict tables: what judging finds out about each pair of a table or shard, so that rules can be chosen afterwards.

One Parquet file for each file of pairs, with a row for each pair:

- `file`, `digest`, `row`: as in a keep-list, see `component.pairs.keep_list`;
- `key`: file name in the image folder, or name in the shard without its ending;
- `image`: 64 bits of the name of the image; equal for several texts of one image;
- `status`: `ok`, or the reason why the pair cannot be used, the first of `component.filter.output.REASONS`;
- `width`, `height`: of the image in pixels;
- `text_length`, `chinese_share`: of the text, as the rules of the same names count them;
- `text_digest`, `image_digest`: 64 bits; equal for equal texts and for equal image files;
- `phash`: 64-bit perceptual hash of the image;
- `score`, `model`: cosine of image and text, if a model measured it, and the identity of that model.

What is not known is NULL. All numbers are signed, so that any engine reads them.
"""

import glob
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.util import hash_array

from component.filter.rules import FilterRules, Finding, chinese_share
from component.filter.workers import CHUNK_ROWS, CheckedChunk, Chunk, checked_chunks
from component.ground.file_state import FileState
from component.ground.files import new_file
from component.ground.lock import sole_writer
from component.ground.plain_text import one_line
from component.pairs.file_content import content_of
from component.pairs.image_stores import key_of
from component.pairs.keep_list import PairsDigest
from component.pairs.parquet import ParquetWriter, import_pyarrow, open_parquet
from component.pairs.sources import read_pair_files
from component.pairs.table_files import expand, file_and_split, is_shard, require_own_names

if TYPE_CHECKING:  # judging without a model needs no torch
    from component.filter.clip_score import ClipScorer

FORMAT = 1
ENDING = ".verdicts.parquet"
MADE_OF = b"made_of"  # key of the metadata: what a verdict table was made of
OK = "ok"
# In pyarrow's names of types.
COLUMNS = {
    **{"file": "string", "digest": "string", "row": "int64", "key": "string", "image": "int64", "status": "string"},
    **{"width": "int32", "height": "int32", "text_length": "int32", "chinese_share": "float32"},
    **{"text_digest": "int64", "image_digest": "int64", "phash": "int64", "score": "float32", "model": "string"},
}
MEASURE_ALL = FilterRules(exact_duplicates=True, near_duplicates=True)


@dataclass
class Judged:
    """What `judge_files` did.

    Attributes:
        judged_before: number of files whose verdicts were there and up to date.
        files: number of files judged.
        reasons: reason → number of pairs of these files; "" for those that can be used.
        errors: file → why it cannot be judged.
    """

    judged_before: int = 0
    files: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)


def verdict_files(files: Sequence[str], folder: str) -> dict[str, str]:
    """File of pairs → its verdict table in a folder.

    Raises:
        ValueError: two files have the same name.
    """
    require_own_names(files)
    return {file: os.path.join(folder, os.path.basename(file) + ENDING) for file in files}


def find_verdicts(places: Sequence[str]) -> list[str]:
    """The verdict tables in some folders, or that some names or patterns stand for. Raises ValueError without any."""
    found = []
    for place in expand(places):
        found += sorted(glob.glob(os.path.join(glob.escape(place), f"*{ENDING}"))) if os.path.isdir(place) else [place]
    if not found:
        raise ValueError(f"{', '.join(places)}: there are no verdicts (*{ENDING}). Judge the data first, see --help.")
    return found


def judge_files(
    verdicts: Mapping[str, str],
    image_path: str | None,
    columns: Mapping[str, str] | None = None,
    scorer: "ClipScorer | None" = None,
    num_workers: int | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Judged:
    """Write the verdict table of each file that has none, or whose table is out of date.

    A file that cannot be read is left out; the others are judged all the same.

    Args:
        verdicts: file of pairs → its verdict table.
        image_path, columns: see `read_pair_files`.
        scorer: without one, a table with scores is up to date too.
        progress: called with the number of pairs judged.

    Raises:
        OSError: a worker process died; an image cannot be read, for a reason that says nothing about it; or a verdict
            table cannot be written.
    """
    judged, model = Judged(), scorer and scorer.model
    settings = {"format": FORMAT, "model": model, "columns": columns and dict(columns)}
    made_of = {file: {**settings, "state": _state(file)} for file in verdicts}
    new = [file for file in verdicts if not _is_made_of(verdicts[file], file, made_of[file])]
    judged.judged_before = len(verdicts) - len(new)
    digests: dict[str, str] = {}

    def chunks() -> Iterator[Chunk]:
        for file in new:
            try:
                pairs = read_pair_files(file, image_path, columns)
                if is_shard(file):  # one frame, whose index takes longest
                    pairs = list(pairs)
                digests[file] = _digest_of(pairs if is_shard(file) else read_pair_files(file, image_path, columns))
                for store, rows in pairs:
                    for start in range(0, max(len(rows), 1), CHUNK_ROWS):
                        yield Chunk(file, store, rows.iloc[start : start + CHUNK_ROWS])
            except (ValueError, FileNotFoundError) as error:
                judged.errors[file] = one_line(error)

    found = checked_chunks(chunks(), MEASURE_ALL, scorer, num_workers)
    for file, group in itertools.groupby(found, key=lambda checked: checked.chunk.file):
        with suppress(_CannotBeJudged), sole_writer(verdicts[file]), new_file(verdicts[file], "wb") as out:
            reasons: Counter[str] = Counter()
            content = content_of(file, FileState(*made_of[file]["state"]))
            with ParquetWriter(out, _schema({**made_of[file], "content": content})) as writer:
                start = 0
                for checked in group:
                    table = _verdicts(checked, digests[file], start, model)
                    writer.append(table)
                    reasons.update(map(_word, checked.findings))
                    start += len(table)
                    progress(len(table))
            # The chunks are read ahead: when the last one is here, the end of the file was read.
            if file not in judged.errors and _state(file) != made_of[file]["state"]:
                judged.errors[file] = f"{file} has changed while it was judged"
            if file in judged.errors:
                raise _CannotBeJudged
            judged.files += 1
            judged.reasons += reasons
    return judged


class _CannotBeJudged(Exception):
    """The file's verdicts are not written."""


def _digest_of(pairs: Iterator[tuple[Any, pd.DataFrame]]) -> str:
    digest = PairsDigest()
    for store, rows in pairs:
        if "query" in rows:
            raise ValueError("a labelled data set has no verdicts; they are for tables and shards")
        digest.update(store, rows)
    return digest.hexdigest()


def _state(file: str) -> list[int] | None:
    try:
        return list(FileState.of(file_and_split(file)[0]))
    except OSError:
        return None  # the error comes when it is read


def _is_made_of(verdict: str, file: str, wanted: dict[str, Any]) -> bool:
    """Whether a verdict table is there and up to date: of the same file, or of a copy of it."""
    try:
        with open_parquet(verdict) as table:
            found = json.loads(table.schema_arrow.metadata[MADE_OF])
        content = found.pop("content", None)  # an older version did not write it
        if content and wanted["state"] and found["state"] != wanted["state"]:
            if content == list(content_of(file, FileState(*wanted["state"]))):
                found["state"] = wanted["state"]
    except (OSError, KeyError, TypeError, ValueError):
        return False
    if wanted["model"] is None:  # scores do no harm
        found["model"] = None
    return found == wanted


def _verdicts(checked: CheckedChunk, digest: str, start: int, model: str | None) -> pd.DataFrame:
    (file, store, rows), findings, scores = checked

    def of_good(name: str) -> list[int | None]:
        return [None if finding.reason else _signed(getattr(finding, name)) for finding in findings]

    texts, locators = rows["text"].str.strip().tolist(), rows["filename"].tolist()
    names = np.array(list(map(store.filename, locators)), object)
    values = {
        "file": file,
        "digest": digest,
        "row": range(start, start + len(findings)),
        "key": [key_of(store, locator) for locator in locators],
        "image": hash_array(names).view(np.int64).tolist(),
        "status": [_word(finding) or OK for finding in findings],
        "width": [finding.size and finding.size[0] for finding in findings],
        "height": [finding.size and finding.size[1] for finding in findings],
        "text_length": list(map(len, texts)),
        "chinese_share": list(map(chinese_share, texts)),
        "text_digest": of_good("text_digest"),
        "image_digest": of_good("image_digest"),
        "phash": of_good("looks"),
        "score": [scores.get(row) for row in range(len(findings))],
        "model": model,
    }
    return pd.DataFrame({name: values[name] for name in COLUMNS}, dtype=object)


def _word(finding: Finding) -> str:
    return finding.reason.partition(":")[0]


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _schema(made_of: dict[str, Any]) -> Any:
    pyarrow = import_pyarrow()
    return pyarrow.schema([*COLUMNS.items()], metadata={MADE_OF: json.dumps(made_of)})
