"""A table that is read once: its arrays in a folder, which later starts and all other processes map.

The folder `<folder>/<digest of what was asked for>/` appears whole or not at all. In it stands of what state of the
files it was made, so one that is out of date is noticed, and replaced.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from component.ground.file_state import FileState
from component.ground.files import new_folder, require_writable, sweep
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.labelled import tsv_of
from component.pairs.pair_table import ChunkEncoder, EncodedChunk, PairTable, write_pairs
from component.pairs.sources import expand, is_shard, read_pair_files
from component.pairs.work import ALONE, Work

logger = logging.getLogger(__name__)

FORMAT = 2  # of the arrays and facts
NAME_FORMAT = 1  # of the folder's name: a table of an older format has the same name, and is replaced
# How many bytes of a file make one of its prepared table, at least. A shard is mostly images.
TEXT_BYTES, SHARD_BYTES = 0.5, 100


States = dict[str, FileState | None]  # path → state; None: the file cannot be looked at


class _IsThere(Exception):
    """Another run has written the same table meanwhile."""


def load_pair_table(
    file: str | Sequence[str],
    image_path: str | None,
    tokenizer,
    max_seq_length: int,
    folder: str | None = None,
    work: Work = ALONE,
) -> PairTable:
    """The pairs of files: mapped from `folder` if they were prepared there, else read, and prepared for the next time.

    Where the folder cannot be written, a warning says so, and the table is kept in memory.

    Args:
        file: one name or several, of CSV or Parquet tables with the columns `text` and `filename`, or of shards; see
            `read_pair_files`.
        image_path: folder that the file names are relative to; may be None for shards.
        tokenizer: of the BERT.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are cut and counted.
        folder: of prepared tables, which is made if it is not there; None: in memory.
        work: of the processes that share it; all call this together.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or there is no row with a text; or the prepared table
            cannot be written to its end, or is not seen by all processes.
        ImportError: what reads Parquet is not installed.
    """
    files, paths = [file] if isinstance(file, str) else list(file), expand(file)
    states = {path: _state(path) for path in (*paths, *_tsvs(paths, image_path))}
    sizes = {path: state and state.size for path, state in states.items()}
    work.require_same(
        sizes,
        f"The processes see different files ({paths[0]}, …). All machines must have the same.",
    )
    encoder = ChunkEncoder(tokenizer, max_seq_length)

    name = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    chunks = _with_a_text(work.map(encoder, read_pair_files(file, image_path, work.index_shards)), name)

    if folder is not None:
        tokens = encoder.backend.to_str(), tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
        prepared = os.path.join(folder, _digest(NAME_FORMAT, paths, image_path, max_seq_length, tokens))
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
    """Write the arrays on the one process that does, and map them on all."""
    fault = None
    if work.is_writer:
        logger.info("%s: the pairs are read once, and written to %s", name, path)
        writer = None
        try:
            with suppress(_IsThere), new_folder(path) as new:
                writer = ArrayWriter(new)
                write_pairs(writer, chunks, name, image_path, format=FORMAT, states=list(states.values()))
                if _open(path, states, work) is not None:
                    raise _IsThere
        except OSError as error:
            if writer and not writer.fault:  # a table that cannot be read
                raise
            fault = error
    deque(chunks, maxlen=0)  # the work of the others, and the rest where writing failed
    if not work.everywhere(fault is None):
        raise ValueError(
            f"The pair table cannot be written to {path} ({fault or 'by the first process'}). Make room, or set "
            "`pair_table` to a folder on another disk, or to off."
        )
    os.listdir(os.path.dirname(path))  # a network file system looks again
    table = _open(path, states, work)
    if not work.everywhere(table is not None):
        raise ValueError(
            f"The pair table {path} was written, but not all processes see it. Set `pair_table` to a folder on a disk "
            "that all machines share, or to off."
        )
    return table


def _with_a_text(chunks: Iterator[EncodedChunk], name: str) -> Iterator[EncodedChunk]:
    """The chunks. Raises ValueError, and on all processes, where not one has a row."""
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
    """Whether a folder can be made and has room; a warning says why not."""
    try:
        os.makedirs(folder, exist_ok=True)
        sweep(folder)
        require_writable(os.path.join(folder, "table"))
        free = shutil.disk_usage(folder).free
        if need > free:
            raise ValueError(f"{folder} has {free / 1e6:.0f} MB free, and it needs about {need / 1e6:.0f} MB")
    except (OSError, ValueError) as error:
        logger.warning(
            "The pair table is kept in memory and read anew at each start, because %s. Set `pair_table` to another "
            "folder, or to off.",
            error,
        )
        return False
    return True


def _state(path: str) -> FileState | None:
    """None for a file that cannot be looked at: the error comes when it is read."""
    try:
        return FileState.of(path)
    except OSError:
        return None


def _tsvs(paths: Sequence[str], image_path: str | None) -> list[str]:
    """Of Chinese-CLIP's texts, where their images lie."""
    found = []
    for path in paths:
        with suppress(ValueError):  # there is none, which reading will name
            found += [tsv_of(path, image_path)] if path.lower().endswith(".jsonl") else []
    return found


def _digest(*settings: Any) -> str:
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
