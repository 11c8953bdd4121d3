"""Sentences with a place for a caption, such as `一张{}的照片`."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from component.pairs.text_file import read_lines

PLACEHOLDER = "{}"
COMMENT = "#"  # begins a line that is not a template


class Template(NamedTuple):
    """A sentence that contains `{}` once.

    Attributes:
        where: the file and line it is from, or its place in a list, for messages.
    """

    text: str
    where: str

    def fill(self, caption: str) -> str:
        return self.text.replace(PLACEHOLDER, caption)


def read_templates(source: str | list[str]) -> list[Template]:
    """The templates of a file, one per line, without empty lines and lines that begin with `#`; or those of a list.

    Raises:
        ValueError: a template does not contain `{}` exactly once, or there is none; the message names file and line.
        OSError: the file cannot be read.
    """
    if isinstance(source, str):
        try:
            lines = read_lines(source)
        except FileNotFoundError:
            hint = ". Write templates themselves as a list, also a single one" if PLACEHOLDER in source else ""
            raise ValueError(f"there is no file {source}{hint}.") from None
        named = ((f"{source}, line {number}", line) for number, line in lines.items())
        templates = [parse_template(line, where) for where, line in named if not line.startswith(COMMENT)]
    else:
        templates = [parse_template(text.strip(), f"template {number}") for number, text in enumerate(source, 1)]
    if not templates:
        raise ValueError(
            f"{'the list' if isinstance(source, list) else source} has no template. Write one per line, with "
            f"{PLACEHOLDER} where the caption goes."
        )
    return templates


def parse_template(text: str, where: str) -> Template:
    """Raises ValueError if the text does not contain `{}` exactly once."""
    count = text.count(PLACEHOLDER)
    if count != 1:
        found = f"has {PLACEHOLDER} {count} times" if count > 1 else f"has no {PLACEHOLDER}"
        raise ValueError(f"{where}: {text!r} {found}. Write {PLACEHOLDER} once, where the caption goes.")
    return Template(text, where)


def templates_identity(templates: Iterable[Template]) -> str:
    """Their number and a digest of their texts, wherever they were read from."""
    texts = [template.text for template in templates]
    digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=6).hexdigest()
    return f"{len(texts)} templates ({digest})"
