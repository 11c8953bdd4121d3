"""What all processes of a run know of the files of its pairs, and what they keep of that for the next start."""

import glob
import hashlib
import os
import platform
from collections.abc import Sequence
from contextlib import suppress

from component.ground.file_state import FileState
from component.ground.files import write_json
from component.ground.reading import read_file
from component.ground.remote import for_each
from component.pairs.file_content import FileContent, content_of, known
from component.pairs.json_text import parse_json
from component.pairs.table_files import file_and_split
from component.pairs.work import Work

KEPT = "contents-"  # of a file's name, followed by the machine
States = dict[str, FileState | None]  # path → state; None: the file cannot be looked at
Contents = dict[str, FileContent | None]


def states_of(paths: Sequence[str]) -> States:
    """The states of some files of pairs. That of a file that cannot be looked at is None: the error comes when it is
    read."""
    return dict(zip(paths, for_each(_state_of, paths), strict=True))


def _state_of(path: str) -> FileState | None:
    try:
        return FileState.of(file_and_split(path)[0])
    except OSError:
        return None


def contents_of(states: States, folder: str | None, work: Work) -> Contents:
    """The contents of some files, the same in all processes, which call this together.

    Processes that see the files in the same states, on one disk, share the reading; so do those of a machine that has
    copies of its own.

    Args:
        folder: of a prepared table, in which the contents are kept for the next start; None: they are not.

    Raises:
        ValueError: the processes see different files; the message names one.
        OSError: a file cannot be read.
    """
    there = [(path, state) for path, state in states.items() if state]
    kept = _read_kept(folder)
    known.update(kept)
    unknown = [file for file in there if file not in known]
    place, count = work.place_among(hashlib.blake2b(repr(states).encode(), digest_size=16).hexdigest())
    for path, state, content in work.exchange(_read, unknown[place::count]):
        known[path, state] = content
    contents = {path: state and content_of(path, state) for path, state in states.items()}
    work.require_same_files(
        {
            path: content and f"{content.size:,} bytes, digest {content.digest[:8]}"
            for path, content in contents.items()
        }
    )
    if folder and place == 0 and any(file not in kept for file in there):
        machine = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
        with suppress(OSError):
            write_json(os.path.join(folder, f"{KEPT}{machine}"), [(*file, contents[file[0]]) for file in there])
    return contents


def _read(file: tuple[str, FileState]) -> tuple[str, FileState, FileContent]:
    return *file, content_of(*file)


def _read_kept(folder: str | None) -> dict[tuple[str, FileState], FileContent]:
    kept = {}
    # Those of all machines: on a shared disk, they see the same states.
    for name in glob.glob(os.path.join(glob.escape(folder), f"{KEPT}*")) if folder else ():
        with suppress(OSError, ValueError, TypeError):  # damaged: the files are read again
            for path, state, content in parse_json(read_file(name)):
                kept[path, FileState(*state)] = FileContent(*content)
    return kept
