"""A table of pairs → the pairs worth training on, in order, in constant memory."""

import contextlib
import csv
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pandas as pd

from component.filter.rules import FilterRules, Finding, check_pairs
from component.ground.cores import usable_cores
from component.ground.files import new_file
from component.ground.lock import sole_writers
from component.ground.plain_text import spreadsheet_cell
from component.image.check import check_image
from component.image.load import BadImageError
from component.image.perceptual_hash import NearDuplicates
from component.pairs.paths import image_file, writable_file
from component.pairs.table import read_pairs, table_writer

COLUMNS = ("text", "filename")
CHUNK_ROWS = 4096
TASK_ROWS = 128
CHUNKS_AHEAD = 2  # enough work for the processes while a chunk is scored and written
# What --delete_bad_images deletes: files that no program would show, and GIFs. Not images that a rule finds too small
# or a limit too large, nor those that another program may show (`undecodable`, `no_plugin`, `other_format`).
BAD_IMAGES = {"gif", "animated", "html", "svg", "empty", "not_image", "truncated", "broken"}

# In the order in which they are asked.
REASONS = (
    *("empty_text", "short_text", "long_text", "little_chinese"),
    *("bad_filename", "missing", "not_a_file", "empty", "html", "svg", "not_image", "truncated", "broken"),
    *("gif", "animated", "no_plugin", "other_format", "undecodable"),
    *("too_large", "too_many_pixels", "too_many_scans", "small", "long_and_narrow"),
    *("dissimilar", "exact_duplicate", "near_duplicate"),
)

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def count_rows(train_file: str) -> int:
    """Number of rows. Reads the whole table, so that a malformed row shows now and not in the middle."""
    return sum(map(len, read_pairs(train_file, COLUMNS, only_required=True, chunk_rows=CHUNK_ROWS)))


def judge_pairs(
    train_file: str,
    image_path: str,
    rules: FilterRules,
    score: Scorer | None = None,
    min_score: float | None = None,
    num_workers: int | None = None,
) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    """Yield the table in order, in chunks, with a reason for each row: "" when it is kept.

    Text and picture are looked at first, then the score, then duplicates of rows that are kept: a pair whose text is
    wrong must not push out its twin whose text is right.

    Args:
        train_file: CSV with the columns `text` and `filename`, and any others.
        image_path: folder of the pictures.
        score: (texts, paths) → similarities of the pairs that pass the rules; called once for each chunk.
        min_score: least similarity; None keeps all.
        num_workers: processes; by default one per core that this process may use.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        OSError: a worker process died; or an image cannot be read, for a reason that says nothing about the image.
    """
    duplicates = _Duplicates(rules)
    for chunk, paths, findings in _inspected(train_file, image_path, rules, num_workers):
        reasons = [finding.reason for finding in findings]
        if score:
            good = [row for row, reason in enumerate(reasons) if not reason]
            texts = chunk["text"].tolist()
            similarities = score([texts[row] for row in good], [paths[row] for row in good]) if good else ()
            for row, similarity in zip(good, similarities, strict=True):
                if min_score is not None and not similarity >= min_score:
                    reasons[row] = f"dissimilar: {similarity:.3f}"
        for row, (path, finding) in enumerate(zip(paths, findings, strict=True)):
            reasons[row] = reasons[row] or duplicates.reason(path, finding)
        yield chunk, reasons


class _Duplicates:
    """Remembers the pairs that are kept, and tells which further ones repeat them."""

    def __init__(self, rules: FilterRules):
        self._rules = rules
        self._digests: set[int] = set()
        self._images = NearDuplicates()

    def reason(self, path: str, finding: Finding) -> str:
        """Why this pair is dropped; "" when it is kept, and remembered."""
        if self._rules.exact_duplicates:
            if finding.digest in self._digests:
                return "exact_duplicate"
            self._digests.add(finding.digest)
        if self._rules.near_duplicates:
            owner = self._images.find(finding.looks)
            if owner is None:
                self._images.add(finding.looks, hash(path))
            elif owner != hash(path):  # another caption of the picture itself is no duplicate
                return "near_duplicate"
        return ""


def _inspected(
    train_file: str, image_path: str, rules: FilterRules, num_workers: int | None
) -> Iterator[tuple[pd.DataFrame, list[str | ValueError], list[Finding]]]:
    """Yield chunk, paths and findings in order, while the next chunks are under way in the worker processes."""

    def settled(chunk, paths, tasks: list[Future]):
        return chunk, paths, [finding for task in tasks for finding in task.result()]

    # spawn: a forked child would inherit the locks of the threads that torch runs in this process.
    # Ctrl-C is for this process alone; the workers end with it, however it ends.
    with ProcessPoolExecutor(
        num_workers or usable_cores(),
        multiprocessing.get_context("spawn"),
        initializer=_live_as_parent,
    ) as pool:
        ahead: deque = deque()
        try:
            for chunk in read_pairs(train_file, COLUMNS, chunk_rows=CHUNK_ROWS):
                texts, paths = chunk["text"].tolist(), [_path(image_path, name) for name in chunk["filename"]]
                parts = [slice(start, start + TASK_ROWS) for start in range(0, len(texts), TASK_ROWS)]
                tasks = [pool.submit(check_pairs, texts[part], paths[part], image_path, rules) for part in parts]
                ahead.append((chunk, paths, tasks))
                if len(ahead) > CHUNKS_AHEAD:
                    yield settled(*ahead.popleft())
            while ahead:
                yield settled(*ahead.popleft())
        except (BrokenProcessPool, MemoryError):
            raise OSError("a worker process was killed, perhaps for lack of memory; try --num_workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _live_as_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # a pipe that the kernel closes, also after SIGKILL
    os._exit(1)


def _path(image_path: str, filename: str) -> str | ValueError:
    try:
        return image_file(image_path, filename)
    except ValueError as error:
        return error


class FilterOutput:
    """Everything that filtering does to the disk; a context manager. Files appear when it ends without an error.

    Entering it raises ValueError where another run writes one of the files.

    Args:
        out_file: CSV for the kept rows, all columns as they were; None: not written.
        report: CSV `row,filename,reason,text` of the dropped rows, rows counted from 1; None: not written.
        delete_in: folder in which the files of BAD_IMAGES are deleted at the end; None: nothing is deleted.

    Attributes:
        num_deleted, num_spared: files that were deleted, and those that were not because they had changed since the
            verdict, or could not be read once more.
    """

    def __init__(self, out_file: str | None = None, report: str | None = None, delete_in: str | None = None):
        self._paths, self._delete_in = (out_file, report), delete_in
        self._rows = 0
        # name → reason, and the state in which the file had it
        self._bad_images: dict[str, tuple[str, tuple[int, ...] | None]] = {}
        self.num_deleted = self.num_spared = 0

    def add(self, chunk: pd.DataFrame, reasons: list[str]) -> None:
        """Take the next rows and their reasons."""
        if self._out:
            table = table_writer(self._out)
            if self._rows == 0:
                table.writerow(chunk.columns)
            table.writerows(chunk.loc[[not reason for reason in reasons]].to_numpy(object).tolist())
        if self._report:
            writer = csv.writer(self._report)
            for row, (name, text, reason) in enumerate(zip(chunk["filename"], chunk["text"], reasons, strict=True), 1):
                if reason:
                    writer.writerow([self._rows + row, *map(spreadsheet_cell, (name, reason, text))])
        if self._delete_in:
            for name, reason in zip(chunk["filename"], reasons, strict=True):
                if reason.partition(":")[0] in BAD_IMAGES:
                    self._bad_images[name] = reason, _state(os.path.join(self._delete_in, name))
        self._rows += len(chunk)

    def __enter__(self):
        with contextlib.ExitStack() as opened:
            opened.enter_context(sole_writers(*self._paths))
            self._out, self._report = (
                opened.enter_context(new_file(path, newline="") if path else contextlib.nullcontext())
                for path in self._paths
            )
            self._files = opened.pop_all()
        if self._report:
            csv.writer(self._report).writerow(["row", "filename", "reason", "text"])
        return self

    def __exit__(self, error_type, *exc_info):
        self._files.__exit__(error_type, *exc_info)
        if error_type is None:
            for name, (reason, state) in self._bad_images.items():
                try:
                    path = writable_file(self._delete_in, name)
                except ValueError:
                    continue  # a name that leads outside, also by a link, was good for looking and is not for deleting
                if _look_again(path) == reason and state and _state(path) == state:
                    os.unlink(path)
                    self.num_deleted += 1
                else:
                    self.num_spared += os.path.lexists(path)  # another name of the same file may have come first


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _look_again(path: str) -> str:
    """Why an image is refused; "" when it is good, or nobody knows."""
    try:
        check_image(path)
    except BadImageError as error:
        return str(error)
    except (OSError, MemoryError):
        pass
    return ""


class Funnel:
    """Counts what `judge_pairs` yields; as text, it is a table for a terminal."""

    def __init__(self):
        self._rows: Counter[str] = Counter()

    def add(self, reasons: Iterable[str]) -> None:
        self._rows.update(reason.partition(":")[0] for reason in reasons)

    def __str__(self) -> str:
        total = left = self._rows.total()
        lines = [f"{'':<20} {'rows':>10} {'left':>10}", f"{'rows in':<31} {left:>10}"]
        for reason in REASONS:
            if rows := self._rows[reason]:
                left -= rows
                lines.append(f"- {reason:<18} {rows:>10} {left:>10}")
        lines.append(f"{'rows out':<31} {left:>10} {left / max(total, 1):>7.1%}")
        return "\n".join(lines)
