"""The names of classes, from a text file: one class a line."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence

from component.pairs.text_file import read_lines

logger = logging.getLogger(__name__)

# What stands between a folder and its name where people do not write a tab.
SEPARATORS = r"[\s,，;；:：|=]+"
MEND = "Write each line as folder<TAB>name, or as the name alone, in the order of the folders."


def read_class_names(path: str, folders: Sequence[str]) -> list[str]:
    """The name of each folder. A warning says which of them have the same.

    Args:
        path: text file; each line is either `folder<TAB>name`, where `folder name`, `folder,name` and the like will
            do, or the name alone. Lines with a tab may speak of further folders.
        folders: in the order that names without a folder have.

    Raises:
        ValueError: lines and folders do not match, or a line can be read in two ways.
        OSError: there is no such file.
    """
    names = _read_names(path, folders)
    folders_of = defaultdict(list)
    for folder, name in zip(folders, names, strict=True):
        folders_of[name].append(folder)
    for name, several in folders_of.items():
        if len(several) > 1:
            logger.warning(
                "%s: the folders %s are all %s, so that a picture of one counts as wrong wherever another is told. "
                "Give each a name of its own.",
                path,
                ", ".join(several[:5]),
                name,
            )
    return names


def _read_names(path: str, folders: Sequence[str]) -> list[str]:
    lines = read_lines(path)
    if any("\t" in line for line in lines.values()):
        pairs = {number: line.split("\t", 1) for number, line in lines.items()}
    else:
        pairs = {number: _split_after_folder(line, set(folders)) for number, line in lines.items()}
        if not all(pairs.values()):
            return _names_in_order(path, lines, folders)
    name_of: dict[str, str] = {}
    for number, pair in pairs.items():
        folder, name = (part.strip() for part in (*pair, "")[:2])
        if not (folder and name):
            raise ValueError(f"{path}, line {number}: {lines[number]!r} names a folder or a class, not both. {MEND}")
        if name_of.setdefault(folder, name) != name:
            raise ValueError(f"{path}, line {number}: the folder {folder} is {name_of[folder]} and {name}.")
    unnamed = [folder for folder in folders if folder not in name_of]
    if unnamed:
        raise ValueError(f"{path} has no line folder<TAB>name for {', '.join(unnamed[:5])}.")
    return [name_of[folder] for folder in folders]


def _split_after_folder(line: str, folders: set[str]) -> list[str] | None:
    """[folder, name], or None for a line that does not begin with a folder; a folder alone is named like itself."""
    if line in folders:
        return [line, line]
    gaps = [gap for gap in re.finditer(SEPARATORS, line) if line[: gap.start()] in folders]
    return [line[: gaps[-1].start()], line[gaps[-1].end() :]] if gaps else None


def _names_in_order(path: str, lines: dict[int, str], folders: Sequence[str]) -> list[str]:
    if len(lines) != len(folders):
        raise ValueError(f"{path} names {len(lines)} classes, but there are {len(folders)} folders. {MEND}")
    for number, line in lines.items():
        # Taken as a name it would be a wrong one, and the order of the names another than that of the folders.
        inside = next((part for part in re.split(rf"[\"'“”]|{SEPARATORS}", line) if part in folders), None)
        if inside:
            raise ValueError(f"{path}, line {number}: {line!r} holds the folder {inside}. {MEND}")
    return list(lines.values())
