"""The options of all scripts, whose values are checked before any work starts."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

from component.ground.output_paths import require_writable, require_writable_folder
from component.ground.plain_text import one_line

MOST = 2**31 - 1  # default upper limit of counts


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line: `filter_data.py: --min_side -5: expected a number …`."""

    def parse_known_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        message = message.removeprefix("argument ")
        if message.endswith(" required") or " are required: " in message:
            # argparse looks for missing options first, so that a mistyped `--modle` would only be a missing `--model`.
            options = [word.partition("=")[0] for word in self._words if word.startswith("--")]
            unknown = [
                word for word in options if not any(known.startswith(word) for known in self._option_string_actions)
            ]
            if unknown:
                message = f"unrecognized arguments: {', '.join(unknown)}; {message}"
        if ": expected " in message:  # from the types below, whose messages begin with the value
            message = message.replace(": ", " ", 1)
        self.exit(2, f"{self.prog}: {one_line(message)} (see --help)\n")

    def require_distinct(self, args: argparse.Namespace, *names: str) -> None:
        """Exit with an error if two of these options, each with one path or several, name the same file."""
        option_of = {}
        for name in names:
            given = getattr(args, name) or []
            for path in [given] if isinstance(given, str) else given:
                other = option_of.setdefault(os.path.realpath(path), name)
                if other != name:
                    self.error(f"--{name} and --{other} name the same file; give each its own")


def whole_number(of: str, least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """Option type: a whole number `of` things.

    >>> whole_number("pixels", least=0, most=100)("64")
    64
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise expected(text, f"a number of {of} {_range(least, most)}")
        return int(text)

    return parse


def number(what: str, least: float = -math.inf, most: float = math.inf, above: float = -math.inf):
    """Option type: a finite number from `least` (or above `above`) to `most`.

    >>> number("a share", 0, 1)("0.5")
    0.5
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            raise expected(text, f"{what} {_range(least, most, above)}")
        return value

    return parse


share = number("a share", 0, 1)


def part(text: str) -> tuple[int, int]:
    """Option type: i/n, the i-th of n parts, counted from 1.

    >>> part("1/4")
    (1, 4)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise expected(text, "a part such as 1/4; four machines take 1/4, 2/4, 3/4 and 4/4")
    return int(match[1]), int(match[2])


def _output(what: str, require: Callable[[str], None]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text:
            raise expected(text, what)
        try:
            require(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


output_file = _output("a file", require_writable)
output_folder = _output("a folder", require_writable_folder)  # that exists, or that can be created


def _input(what: str, is_there: Callable[[str], bool]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not is_there(text):
            raise expected(text, what + ("" if os.path.exists(text) else ", but it does not exist"))
        return text

    return parse


input_file = _input("a file", os.path.isfile)  # a regular one: a pipe could keep the script waiting forever
input_folder = _input("a folder", os.path.isdir)


def unicode_text(given: str) -> str:
    """Option type: a text that is not empty, in Unicode whatever the terminal's encoding.

    Python decodes the command line by the locale. A locale such as Latin-1 makes mojibake of UTF-8 without an error.
    """
    if not given.strip():
        raise expected(given, "a text")
    try:
        return decode_argument(given, sys.getfilesystemencoding())
    except UnicodeError:
        raise expected(
            given, "a text in UTF-8 (the terminal uses another encoding, such as GBK: use UTF-8, or a text file)"
        ) from None


def decode_argument(given: str, encoding: str) -> str:
    """A word of the command line that Python decoded by `encoding`; read as UTF-8 if that encoding has no Chinese.

    Raises:
        UnicodeError: the bytes are not text in `encoding`.

    >>> decode_argument("小狗".encode().decode("latin-1"), "latin-1")
    '小狗'
    """
    content = given.encode(encoding, "surrogateescape")
    try:
        "中".encode(encoding)
    except UnicodeEncodeError:
        with suppress(UnicodeDecodeError):
            return content.decode()
    given.encode()
    return given


def expected(text: str, what: str) -> argparse.ArgumentTypeError:
    """The error of an option type: the value, and what was expected instead."""
    return argparse.ArgumentTypeError(f"{text or repr(text)}: expected {what}")


def _range(least: float, most: float, above: float = -math.inf) -> str:
    low = f"above {above:g}" if above > -math.inf else f"from {least:g}" if least > -math.inf else ""
    return f"{low} to {most:,}" if most not in (MOST, math.inf) else low
