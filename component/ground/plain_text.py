"""Text from the internet, made harmless where it leaves: a terminal, a log, a page, a spreadsheet."""

import re

# Control characters, separators of lines and halves of surrogates; and what turns the direction of writing. Other
# format characters stay: emoji are joined and coloured by them.
_ACTIVE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_FORMULA = re.compile("'*[=+@\t\r-]")


def one_line(text: object) -> str:
    r"""The text in one line: white space as single spaces, what a terminal would obey as an escape such as \x1b."""
    return _ACTIVE.sub(lambda match: match[0].encode("unicode_escape").decode(), " ".join(str(text).split()))


def spreadsheet_cell(text: str) -> str:
    """The text with an apostrophe before what a spreadsheet would take for a formula: = + - @, tab, return.

    For tables that people open; `cell_text` gives the text back.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def cell_text(cell: str) -> str:
    """What `spreadsheet_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
