"""Tables for a terminal, where a Chinese character takes two columns, and in Markdown."""

import unicodedata
from collections.abc import Sequence
from itertools import accumulate

from component.ground.plain_text import one_line, shown_path


def display_width(text: str) -> int:
    """Terminal columns that a text takes: 2 for wide characters (Chinese, emoji), 0 for combining marks, else 1.

    >>> display_width("一只cat")
    7
    """
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def percent(share: float) -> str:
    """A share in percent, to one decimal.

    >>> percent(0.62)
    '62.0'
    """
    return f"{100 * share:.1f}"


def fit(text: str, columns: int, align_right: bool = False, keep_end: bool = False) -> str:
    """The text in exactly `columns` columns: padded with spaces, or cut at its end or start with an ellipsis."""
    if display_width(text) > columns:
        widths = accumulate(map(_width, reversed(text) if keep_end else text))
        kept = sum(width < columns for width in widths)  # characters that fit next to the ellipsis
        text = f"…{text[len(text) - kept :]}" if keep_end else f"{text[:kept]}…"
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
        right: columns aligned to the right, for numbers.
        paths: columns whose long cells are cut at their start; others are cut at their end.
        widest: terminal columns of a cell; longer ones are cut.
    """
    rows = [[(shown_path if i in paths else one_line)(cell) for i, cell in enumerate(row)] for row in rows]
    widths = [min(widest, max(map(display_width, column))) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(fit(cell, widths[i], i in right, i in paths) for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns are aligned to the right, those without a name to the left."""
    rule = ["---:" if name else ":---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
