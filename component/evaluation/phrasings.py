"""Ways in which people phrase the same question: in a sentence, with a slip, in other characters."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from component.ground.optional import import_optional
from component.pairs.templates import COMMENT, PLACEHOLDER, parse_template
from component.pairs.text_file import read_lines

SHIPPED = str(Path(__file__).with_name("phrasings.txt"))

_HALF_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)} | dict(
    zip(map(ord, "　。、「」"), " .,[]", strict=True)
)
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {ord(" "): "　"}
_FEWEST_CHARACTERS = 3  # of a text from which one is dropped


class Phrasing(NamedTuple):
    """One way to ask.

    Attributes:
        name: the line of the file.
        group: the heading above it, such as "reported"; "" if there is none.
        change: text → how it is asked; the same every time.
    """

    name: str
    group: str
    change: Callable[[str], str]


def read_phrasings(path: str = SHIPPED) -> list[Phrasing]:
    """Read a file of phrasings; see the shipped one for its form.

    Raises:
        ValueError: a line is neither a sentence with `{}` nor the name of a change, or repeats another, or the file
            has no phrasing; the message names file and line.
        ModuleNotFoundError: a change needs opencc, which is not installed.
        OSError: the file cannot be read.
    """
    phrasings, line_of, group = [], {}, ""
    for number, line in read_lines(path).items():
        where = f"{path}, line {number}"
        if line.startswith(COMMENT):
            continue
        if heading := re.fullmatch(r"\[([^\[\]{}]+)\]", line):
            group = heading[1]
            continue
        if PLACEHOLDER not in line and line not in CHANGES:
            raise ValueError(f"{where}: {line!r} has no {PLACEHOLDER}, and is none of {', '.join(CHANGES)}.")
        if line in line_of:
            raise ValueError(f"{where} repeats line {line_of[line]}: {line!r}.")
        line_of[line] = number
        change = _change(line, where) if line in CHANGES else parse_template(line, where).fill
        phrasings.append(Phrasing(line, group, change))
    if not phrasings:
        raise ValueError(f"{path} has no phrasing. Write one per line, such as {PLACEHOLDER}？")
    return phrasings


def swapped(text: str) -> str:
    """Two neighbouring letters or characters that differ, swapped.

    >>> swapped("猫狗")
    '狗猫'
    """
    places = [i for i, (one, other) in enumerate(zip(text, text[1:], strict=False)) if one != other]
    places = [i for i in places if text[i].isalnum() and text[i + 1].isalnum()]
    if not places:
        return text
    i = random.Random(text).choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def dropped(text: str) -> str:
    """The text without one of its letters or characters, if it has at least three."""
    places = [i for i, character in enumerate(text) if character.isalnum()]
    if len(places) < _FEWEST_CHARACTERS:
        return text
    i = random.Random(text).choice(places)
    return text[:i] + text[i + 1 :]


def full_width(text: str) -> str:
    """ASCII in its full-width forms.

    >>> full_width("3D 眼镜")
    '３Ｄ　眼镜'
    """
    return text.translate(_FULL_WIDTH)


def half_width(text: str) -> str:
    """Full-width forms and Chinese punctuation as ASCII.

    >>> half_width("３Ｄ眼镜，好看。")
    '3D眼镜,好看.'
    """
    return text.translate(_HALF_WIDTH)


_OWN = {"swapped": swapped, "dropped": dropped, "full-width": full_width, "half-width": half_width}
_OPENCC = {"traditional": "s2t", "simplified": "t2s"}  # name → opencc's name for it
CHANGES = (*_OWN, *_OPENCC)


def _change(name: str, where: str) -> Callable[[str], str]:
    if name in _OWN:
        return _OWN[name]
    return import_optional("opencc", f"{where}: {name}").OpenCC(_OPENCC[name]).convert
