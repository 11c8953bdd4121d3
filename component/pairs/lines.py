"""Texts from a file with one a line."""


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, with or without BOM; without white space around them, and without the empty ones.

    Raises:
        ValueError: not UTF-8, or there is no text.
        OSError: there is no such file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not UTF-8. Convert it first: iconv -f gb18030 -t utf-8 {path} > utf8.txt"
        ) from None
    if not lines:
        raise ValueError(f"{path} holds no text; one a line is expected.")
    return lines
