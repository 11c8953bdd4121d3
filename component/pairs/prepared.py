"""Pair tables on disk: arrays in a folder, written once, which later starts and all other processes map.

The folder `<folder>/<digest of what was asked for>/` appears as a whole or not at all. It records the contents of the
files that it was made from, so a table that is out of date is noticed and replaced, and one whose files were copied to
another disk is not.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from component.ground.files import new_folder, sweep
from component.ground.output_paths import require_writable
from component.ground.remote import is_remote
from component.pairs.file_content import known
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.keep_list import KeepList
from component.pairs.known_files import Contents, States, contents_of, states_of
from component.pairs.pair_table import ChunkEncoder, EncodedChunk, PairTable, write_pairs
from component.pairs.shards import ShardIndex
from component.pairs.sources import read_pair_files, tsvs_of
from component.pairs.table_files import is_shard, pair_files
from component.pairs.work import ALONE, Work

logger = logging.getLogger(__name__)

FORMAT = 4  # of the arrays and facts
NAME_FORMAT = 1  # of the folder's name: a table of an older format has the same name, and is replaced
# Bytes of a file for each byte of its prepared table, at the least. A shard is mostly images.
TEXT_BYTES, SHARD_BYTES = 0.5, 100


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
    tsvs = tsvs_of(paths, image_path) if all(is_remote(path) or os.path.exists(path) for path in paths) else []
    states = states_of([*paths, *tsvs, *(keep_list.paths if keep_list else ())])
    work.require_same_files({path: state and f"{state.size:,} bytes" for path, state in states.items()})
    name = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    prepared = folder and os.path.join(folder, _name_of(paths, states, image_path, encoder, columns, keep_list))
    if prepared and work.everywhere(os.path.isdir(prepared)):
        table = _open(prepared, states, contents_of(states, prepared, work))
        if work.everywhere(table is not None):
            table.file = name  # it may have been written when the files were in another folder
            return table
    contents: Contents = dict.fromkeys(states)
    contents |= contents_of({path: state for path, state in states.items() if not is_shard(path)}, None, work)

    def index_shards(shards: Sequence[str]) -> Iterator[ShardIndex]:
        for index in work.index_shards(shards):
            if index.shard:
                contents[index.shard.path] = known[index.shard.path, index.shard.state] = index.content
            yield index

    pairs = read_pair_files(file, image_path, columns, index_shards, keep_list=keep_list)
    chunks = _with_a_text(work.map(encoder, pairs), name)
    if prepared and work.everywhere(not work.is_writer or _is_writable(folder, states)):
        table = _prepare(prepared, states, contents, chunks, name, image_path, work)
    else:
        table = _table(write_pairs(ArrayWriter(), chunks, name, image_path, contents), states)
    if contents_of(states, table.path, work) != contents:
        raise ValueError(f"{name} has changed while it was read. Start again.")
    return table


def _table(arrays: FlatArrays, states: States) -> PairTable:
    return PairTable(arrays, dict(zip(arrays.facts["files"], states.items(), strict=True)))


def _name_of(
    paths: Sequence[str],
    states: States,
    image_path: str | None,
    encoder: ChunkEncoder,
    columns: Mapping[str, str] | None,
    keep_list: KeepList | None,
) -> str:
    """The name of the folder of a table: a digest of what is asked for. Shards may move as a whole."""
    asked = [NAME_FORMAT, paths, image_path, *encoder.identity, *([dict(columns)] if columns else [])]
    if all(map(is_shard, paths)):
        common = os.path.dirname(os.path.commonprefix(list(map(os.path.abspath, paths))))
        asked[1] = [(os.path.relpath(path, common), states[path] and states[path].size) for path in paths]
    if keep_list:
        asked.append(keep_list.path)
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()


def _prepare(
    path: str,
    states: States,
    contents: Contents,
    chunks: Iterator[EncodedChunk],
    name: str,
    image_path: str | None,
    work: Work,
) -> PairTable:
    """Write the arrays on the process that is the writer, and map them on all.

    Args:
        contents: of the files, which are known once the chunks are read.
    """
    fault = None
    if work.is_writer:
        logger.info("%s: the pairs are read once, and written to %s", name, path)
        writer = None
        try:
            with suppress(_IsThereError), new_folder(path) as new:
                writer = ArrayWriter(new)
                write_pairs(writer, chunks, name, image_path, contents, format=FORMAT)
                if _open(path, states, contents) is not None:
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
    table = _open(path, states, contents)
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


def _open(path: str, states: States, contents: Contents) -> PairTable | None:
    """The table that was prepared from files with these contents; None if there is none, or it is damaged."""
    if not os.path.isdir(path):
        return None
    try:
        arrays = FlatArrays.open(path)
        if arrays.facts.get("format") != FORMAT:
            logger.warning("%s was written by another version: its files are read again.", path)
        elif arrays.facts["contents"] != [content and list(content) for content in contents.values()]:
            logger.warning("%s was made from other files or other versions of them: they are read again.", path)
        else:
            return _table(arrays, states)
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s; its files are read again.", error)
    return None


def _is_writable(folder: str, states: States) -> bool:
    """Whether a folder can be created and has room for the table of some files; logs a warning that says why not."""
    need = sum(state.size / (SHARD_BYTES if is_shard(path) else TEXT_BYTES) for path, state in states.items() if state)
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
