"""Folders, tables and shards → the images in them, as they lie on disk, without a look into any."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from component.image.folder import IMAGE_ENDINGS, PassedOver, is_hidden, is_image_name
from component.pairs.paths import image_file
from component.pairs.shards import Shard
from component.pairs.sources import expand, is_shard, read_pair_files
from component.search.gallery import FileState


def scan(sources: Sequence[str], image_path: str | None = None) -> Iterator[FileState]:
    """Yield every image once, in order.

    Args:
        sources: folders (with all that lies below them, hidden folders aside), image files, tables of pairs (CSV or
            Parquet), and WebDataset shards; `{00..99}` and `*` mean what they mean in a shell.
        image_path: the folder that the file names in tables are relative to.

    Raises:
        ValueError, FileNotFoundError: a source is missing or cannot be read.
    """
    seen, passed_over = set(), PassedOver()
    for source in expand(sources):
        for state in _scan_one(source, image_path, passed_over):
            if state.path not in seen:
                seen.add(state.path)
                yield state
    passed_over.warn()


def is_below(path: str, sources: Sequence[str]) -> bool:
    """True where a scan of these sources would have come by `path`, if it were there."""
    return any(path == source or path.startswith(os.path.join(source, "")) for source in sources)


def roots(sources: Sequence[str]) -> list[str]:
    """The absolute paths of the folders, shards and files among the sources; not of tables."""
    return [os.path.abspath(source) for source in expand(sources) if not _is_table(source)]


def _is_table(source: str) -> bool:
    return source.lower().endswith((".csv", ".csv.gz", ".parquet"))


def _scan_one(source: str, image_path: str | None, passed_over: PassedOver) -> Iterator[FileState]:
    if os.path.isdir(source):
        yield from _scan_folder(source, passed_over)
    elif not os.path.isfile(source):
        raise FileNotFoundError(f"{source}: there is no such folder or file (seen from {os.getcwd()}).")
    elif is_shard(source) or _is_table(source):
        if image_path is None and _is_table(source):
            raise ValueError(f"{source} is a table: give the folder of its images with --image_path.")
        yield from _scan_pairs(source, image_path)
    elif is_image_name(source):
        yield _file_state(os.path.abspath(source))
    else:
        raise ValueError(f"{source} is no folder, no table, no shard and no image ({', '.join(IMAGE_ENDINGS)}).")


def _scan_folder(folder: str, passed_over: PassedOver) -> Iterator[FileState]:
    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be read is not one whose images are gone

    for parent, folders, names in os.walk(os.path.abspath(folder), onerror=stop):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not os.path.isfile(path) or is_hidden(name):
                continue
            if is_image_name(name):
                yield _file_state(path)
            else:
                passed_over.add(path)


def _scan_pairs(file: str, image_path: str | None) -> Iterator[FileState]:
    for place, chunk in read_pair_files(file, image_path):
        for locator in chunk["filename"].tolist():
            if isinstance(place, Shard):
                path = os.path.join(os.path.abspath(place.path), place.filename(locator)[len(place.path) + 1 :])
                yield FileState(path, place.state.size, place.state.mtime_ns, os.path.abspath(place.path), locator)
                continue
            with suppress(ValueError, FileNotFoundError, NotADirectoryError):  # the table names more than there is
                yield _file_state(os.path.abspath(image_file(place.path, locator)))


def _file_state(path: str) -> FileState:
    status = os.stat(path)
    return FileState(path, status.st_size, status.st_mtime_ns)
