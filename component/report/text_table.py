"""Tables: aligned for a terminal, where a Chinese character takes two columns, and as Markdown."""

import unicodedata
from collections.abc import Sequence

from component.ground.plain_text import one_line, shown_path


def display_width(text: str) -> int:
    """Terminal columns that a text takes: 2 for wide characters (Chinese, emoji), 0 for combining marks, else 1."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, columns: int, align_right: bool = False, keep_end: bool = False) -> str:
    """The text in exactly `columns` columns: filled with spaces, or cut with an ellipsis at its end or start."""
    if display_width(text) > columns:
        while display_width(text) > columns - 1:
            text = text[1:] if keep_end else text[:-1]
        text = f"…{text}" if keep_end else f"{text}…"
    space = " " * (columns - display_width(text))
    return space + text if align_right else text + space


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    paths: Sequence[int] = (),
    widest: int = 40,
) -> str:
    """Lay out rows under a header.

    Args:
        right: columns that are aligned to the right (numbers).
        paths: columns whose cells are cut at their start, where others are cut at their end.
        widest: terminal columns that one cell may take; longer ones are cut.
    """
    rows = [[(shown_path if i in paths else one_line)(cell) for i, cell in enumerate(row)] for row in rows]
    widths = [min(widest, max(map(display_width, column))) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(fit(cell, widths[i], i in right, i in paths) for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, aligned to the right but for a column without a name."""
    rule = ["---:" if name else ":---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
