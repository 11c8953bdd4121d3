"""Pair tables on disk: arrays in a folder, written once, which later starts and all other processes map.

The folder `<folder>/<digest of what was asked for>/` appears as a whole or not at all. It records the states of the
files that it was made from, so a table that is out of date is noticed and replaced.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from component.ground.file_state import FileState
from component.ground.files import new_folder, require_writable, sweep
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.keep_list import KeepList
from component.pairs.pair_table import ChunkEncoder, EncodedChunk, PairTable, write_pairs
from component.pairs.sources import read_pair_files, tsvs_of
from component.pairs.table_files import file_and_split, is_shard, pair_files
from component.pairs.work import ALONE, Work

logger = logging.getLogger(__name__)

FORMAT = 2  # of the arrays and facts
NAME_FORMAT = 1  # of the folder's name: a table of an older format has the same name, and is replaced
# Bytes of a file for each byte of its prepared table, at the least. A shard is mostly images.
TEXT_BYTES, SHARD_BYTES = 0.5, 100

States = dict[str, FileState | None]  # path → state; None: the file cannot be looked at


class _IsThereError(Exception):
    """Another run has written the same table in the meantime."""


def load_pair_table(
    file: str | Sequence[str],
    image_path: str | None,
    encoder: ChunkEncoder,
    columns: Mapping[str, str] | None = None,
    folder: str | None = None,
    work: Work = ALONE,
    keep_list: KeepList | None = None,
) -> PairTable:
    """The pairs of some files: mapped from `folder` if they were prepared there, else read and prepared for next time.

    If the folder cannot be written, log a warning and keep the table in memory.

    Args:
        file, image_path, columns: see `read_pair_files`.
        folder: of prepared tables, created if it does not exist; None: keep the table in memory.
        work: shares the reading among processes, which must all call this together.
        keep_list: see `read_pair_files`.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or no row has a text; or the prepared table cannot be
            written to its end, or is not seen by all processes.
        ImportError: a file is Parquet and pyarrow is not installed.
    """
    files, paths = [file] if isinstance(file, str) else list(file), pair_files(file)
    tsvs = tsvs_of(paths, image_path) if all(map(os.path.exists, paths)) else []
    states = {path: _state(path) for path in (*paths, *tsvs, *(keep_list.paths if keep_list else ()))}
    sizes = {path: state and state.size for path, state in states.items()}
    work.require_same(
        sizes, f"The processes see different files ({paths[0]}, …). All machines must have the same files."
    )
    name = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    chunks = work.map(encoder, read_pair_files(file, image_path, columns, work.index_shards, keep_list=keep_list))
    chunks = _with_a_text(chunks, name)
    if folder is not None:
        asked = (NAME_FORMAT, paths, image_path, *encoder.identity, *([dict(columns)] if columns else []))
        if keep_list:
            asked += (keep_list.path,)
        prepared = os.path.join(folder, _digest(*asked))
        table = _open(prepared, states, work)
        if work.everywhere(table is not None):
            return table
        need = sum((sizes[path] or 0) / (SHARD_BYTES if is_shard(path) else TEXT_BYTES) for path in paths)
        if work.everywhere(not work.is_writer or _is_writable(folder, need)):
            return _prepare(prepared, states, chunks, name, image_path, work)
    return PairTable(write_pairs(ArrayWriter(), chunks, name, image_path), states)


def _prepare(
    path: str, states: States, chunks: Iterator[EncodedChunk], name: str, image_path: str | None, work: Work
) -> PairTable:
    """Write the arrays on the process that is the writer, and map them on all."""
    fault = None
    if work.is_writer:
        logger.info("%s: the pairs are read once, and written to %s", name, path)
        writer = None
        try:
            with suppress(_IsThereError), new_folder(path) as new:
                writer = ArrayWriter(new)
                write_pairs(writer, chunks, name, image_path, format=FORMAT, states=list(states.values()))
                if _open(path, states, work) is not None:
                    raise _IsThereError
        except OSError as error:
            if writer and not writer.fault:  # it was reading that failed
                raise
            fault = error
    deque(chunks, maxlen=0)  # the other processes do their share; so does the writer if writing failed
    if not work.everywhere(fault is None):
        raise ValueError(
            f"The pair table cannot be written to {path} ({fault or 'by the first process'}). Make room, or set "
            "`pair_table` to a folder on another disk, or to off."
        )
    os.listdir(os.path.dirname(path))  # makes a network file system look again
    table = _open(path, states, work)
    if not work.everywhere(table is not None):
        raise ValueError(
            f"The pair table {path} was written, but not all processes see it. Set `pair_table` to a folder on a disk "
            "that all machines share, or to off."
        )
    return table


def _with_a_text(chunks: Iterator[EncodedChunk], name: str) -> Iterator[EncodedChunk]:
    """Yield the chunks. Raises ValueError, on all processes, if none of them has a row."""
    rows = empty = 0
    for chunk in chunks:
        rows, empty = rows + len(chunk.text_ids), empty + chunk.num_empty_texts
        yield chunk
    if not rows:
        raise ValueError(f"{name} has no row with a text ({empty} rows with an empty one).")


def _open(path: str, states: States, work: Work) -> PairTable | None:
    """The table that was prepared from files in these states; None if there is none, or it is damaged.

    The writer compares the states. The other processes may have copies of the files, whose times and inodes differ.
    """
    if not os.path.isdir(path):
        return None
    try:
        arrays = FlatArrays.open(path)
        if arrays.facts.get("format") != FORMAT:
            logger.warning("%s was written by another version: its files are read again.", path)
        elif work.is_writer and arrays.facts["states"] != [state and list(state) for state in states.values()]:
            logger.warning("%s was made from other files or other versions of them: they are read again.", path)
        else:
            return PairTable(arrays, states)
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s; its files are read again.", error)
    return None


def _is_writable(folder: str, need: float) -> bool:
    """Whether a folder can be created and has room; logs a warning that says why not."""
    try:
        os.makedirs(folder, exist_ok=True)
        sweep(folder)
        require_writable(os.path.join(folder, "table"))
        free = shutil.disk_usage(folder).free
        if need > free:
            raise ValueError(f"{folder} has {free / 1e6:.0f} MB free, and it needs about {need / 1e6:.0f} MB")
    except (OSError, ValueError) as error:
        logger.warning(
            "The pair table is kept in memory and made again at each start, because %s. Set `pair_table` to another "
            "folder, or to off.",
            error,
        )
        return False
    return True


def _state(path: str) -> FileState | None:
    """None for a file that cannot be looked at: the error comes when it is read."""
    try:
        return FileState.of(file_and_split(path)[0])
    except OSError:
        return None


def _digest(*settings: Any) -> str:
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
