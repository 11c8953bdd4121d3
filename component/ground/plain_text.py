"""Escape text from the internet before it goes to a terminal, a log, a page or a spreadsheet."""

import re

# Control characters, line separators, lone surrogates and characters that change the writing direction. Other format
# characters stay, because emoji need them.
_ACTIVE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_FORMULA = re.compile("'*[=+@\t\r-]")


def one_line(text: object) -> str:
    r"""The text in one line, with each run of white space as one space and control characters as escapes.

    >>> one_line("red\n\x1b[31m")
    'red \\x1b[31m'
    """
    return _ACTIVE.sub(lambda match: _escape(match[0]), " ".join(str(text).split()))


def shown_path(path: str) -> str:
    r"""A path in one line in which names that differ look different: all white space but plain spaces is escaped.

    >>> shown_path("two  spaces\u3000wide")
    'two  spaces\\u3000wide'
    """
    return "".join(_escape(c) if _ACTIVE.match(c) or (c.isspace() and c != " ") else c for c in path)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def spreadsheet_cell(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would read it as a formula (= + - @, tab, return).

    For tables that people open. `cell_text` reverses it.

    >>> spreadsheet_cell("=1+1"), cell_text("'=1+1")
    ("'=1+1", '=1+1')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def cell_text(cell: str) -> str:
    """The text that was given to `spreadsheet_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
