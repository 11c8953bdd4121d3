"""Reads class names from a text file: one class per line."""

import re
from collections.abc import Sequence

from component.pairs.caption import is_caption, visible
from component.pairs.text_file import read_lines

SEPARATORS = r"[\s,，;；:：|=]+"  # what people write between a folder and its name instead of a tab
REMEDY = "Write each line as folder<TAB>name, or write only the names, in the order of the folders."


def read_class_names(path: str, folders: Sequence[str]) -> list[str]:
    """Read the class name of each folder.

    Args:
        path: text file; each line is either `folder<TAB>name` (`folder name`, `folder,name` and similar work too) or
            the name alone. Lines with a tab may name further folders.
        folders: in the order of the names, for lines without a folder.

    Raises:
        ValueError: lines and folders do not match, a line can be read in two ways, a name shows nothing, or two
            folders have the same name.
        OSError: the file does not exist.
    """
    names = _read_names(path, folders)
    folder_of: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        if not is_caption(name):
            raise ValueError(f"{path}: the name of the folder {folder} has no visible character ({name!a}).")
        # The tokenizer drops invisible characters as well.
        first = folder_of.setdefault(visible(name).casefold(), folder)
        if first != folder:
            raise ValueError(
                f"{path}: the folders {first} and {folder} are both named {visible(name)}, so their images cannot be "
                "told apart. Give each class a name of its own, or put the images into one folder."
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
        folder, name = (text.strip() for text in (*pair, "")[:2])
        if not (folder and name):
            raise ValueError(f"{path}, line {number}: {lines[number]!r} has a folder or a name, not both. {REMEDY}")
        if name_of.setdefault(folder, name) != name:
            raise ValueError(
                f"{path}, line {number}: the folder {folder} has two names, {name_of[folder]} and {name}."
            )
    unnamed = [folder for folder in folders if folder not in name_of]
    if unnamed:
        raise ValueError(f"{path} has no line folder<TAB>name for {', '.join(unnamed[:5])}.")
    return [name_of[folder] for folder in folders]


def _split_after_folder(line: str, folders: set[str]) -> list[str] | None:
    """[folder, name], or None if the line does not begin with a folder. A folder alone is its own name."""
    if line in folders:
        return [line, line]
    gaps = [gap for gap in re.finditer(SEPARATORS, line) if line[: gap.start()] in folders]
    return [line[: gaps[-1].start()], line[gaps[-1].end() :]] if gaps else None


def _names_in_order(path: str, lines: dict[int, str], folders: Sequence[str]) -> list[str]:
    if len(lines) != len(folders):
        raise ValueError(f"{path} has {len(lines)} class names, but there are {len(folders)} folders. {REMEDY}")
    for number, line in lines.items():
        # As a name, the line would be wrong, and the names are probably not in the order of the folders.
        inside = next((word for word in re.split(rf"[\"'“”]|{SEPARATORS}", line) if word in folders), None)
        if inside:
            raise ValueError(f"{path}, line {number}: {line!r} contains the folder {inside}. {REMEDY}")
    return list(lines.values())
