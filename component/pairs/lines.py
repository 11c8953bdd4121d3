"""Texts from a file with one a line."""

from component.pairs.text_file import open_text, text_lines


def read_lines(path: str) -> dict[int, str]:
    """Number → line of a text file (see `open_text`), without white space around them, and without the empty ones.

    Raises:
        ValueError: it is no text file, with the mend, or there is no text in it.
        OSError: there is no such file.
    """
    with open_text(path) as file:
        lines = {number: line.strip() for number, line in enumerate(text_lines(file, path), 1) if line.strip()}
    if not lines:
        raise ValueError(f"{path} holds no text; one a line is expected.")
    return lines
