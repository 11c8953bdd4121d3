"""Text files: UTF-8, also packed by gzip; for any other file, an error that says what it is and what to do."""

import codecs
import functools
import gzip
import io
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from component.ground.reading import open_to_read

MAX_LINE = 2**25  # characters: enough for an image as base64
_HEAD_BYTES = 4096
_GZIP = b"\x1f\x8b"
_SAMPLE_BYTES = 2**20
_ENOUGH_LINES = 10_000  # lines that are not UTF-8, to guess their encoding

# First bytes of a file, what it is, and what to do.
_OTHER_KINDS = (
    (b"PK\x03\x04", "an Excel file or a zip archive", "In Excel, save it as “CSV UTF-8”; unpack a zip."),
    (b"\xd0\xcf\x11\xe0", "an Excel file", "In Excel, save it as “CSV UTF-8”."),
    (b"PAR1", "a Parquet file", "A text file is expected."),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "Unpack it: zstd -d."),
    (b"BZh", "packed by bzip2", "Unpack it: bunzip2."),
    (b"\xfd7zXZ", "packed by xz", "Unpack it: unxz."),
    (b"7z\xbc\xaf", "a 7-Zip archive", "Unpack it."),
    (b"Rar!", "a RAR archive", "Unpack it."),
    (b"%PDF", "a PDF", "Give the table itself."),
    (b"\x89PNG", "an image", "Give the table that names it."),
    (b"\xff\xd8\xff", "an image", "Give the table that names it."),
    (b"version https://git-lfs", "the pointer of Git LFS to a file that is not here", "Fetch the file: git lfs pull."),
)
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """Open a text file for reading, without changing its line ends.

    The file is UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one, and may be packed by gzip,
    whatever its name.

    Raises:
        ValueError: with what to do; at once for a file of another kind, within the block for a damaged one.
        OSError: the file cannot be read.
    """
    try:
        with _unpacked(path) as file:
            encoding = _encoding(path, file.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            try:
                yield io.TextIOWrapper(file, encoding, newline="")
            except UnicodeDecodeError as error:
                fault = f"{path} begins as {encoding} but is damaged: {error.reason}. Save it as UTF-8."
                raise ValueError(_encoding_fault(path) if encoding == "utf-8-sig" else fault) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is packed, and damaged or cut short: {error}. Fetch or pack it again.") from None


def text_lines(file: TextIO, path: str) -> Iterator[str]:
    """Yield the lines of an open text file. Raises ValueError for a line that is too long."""
    for number, line in enumerate(iter(functools.partial(file.readline, MAX_LINE), ""), 1):
        if len(line) == MAX_LINE:
            raise ValueError(f"{path}, line {number} has more than {MAX_LINE:,} characters. Is it the right file?")
        yield line


def require_plain_text(path: str, file: io.BufferedReader) -> None:
    """Raise ValueError, with what to do, unless a file can be read from any offset: not packed, and UTF-8."""
    head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if head.startswith(_GZIP):
        raise ValueError(f"{path} is packed, so it cannot be read from the middle. Unpack it: gunzip.")
    encoding = _encoding(path, head)
    if encoding != "utf-8-sig":
        raise ValueError(f"{path} is {encoding}. Convert it: {_convert(path, encoding)}")


@contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
    with open_to_read(path) as file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield unpacked


def _encoding(path: str, head: bytes) -> str:
    """The encoding of a text that begins with `head`. Raises ValueError if it is not a text."""
    for start, kind, mend in _OTHER_KINDS:
        if head.startswith(start):
            raise ValueError(f"{path} is {kind}. {mend}")
    if _HTML.match(head):
        raise ValueError(f"{path} is a web page, perhaps that of an error or a login. Fetch the file itself.")
    if head[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar. Give a shard plain, with a name that ends in .tar.")
    # UTF-32 first, because its mark begins with that of UTF-16.
    for marks, encoding in (
        ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
        ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
    ):
        if head.startswith(marks):
            return encoding
    for zeros, name in ((head[1:8:2], "utf-16le"), (head[0:8:2], "utf-16be")):
        if zeros == bytes(4):
            raise ValueError(f"{path} is {name.upper()} without a mark. Convert it: {_convert(path, name)}")
    return "utf-8-sig"


def _convert(path: str, encoding: str) -> str:
    return f"iconv -f {encoding} -t utf-8 {shlex.quote(path)} > utf8{os.path.splitext(path)[1]}"


def _encoding_fault(path: str) -> str:
    """What is wrong with a file that is not UTF-8: where, whether all of it or a few bytes, and what to do."""
    offset, first, num_bad, good, replaced, sample = 0, "", 0, 0, 0, b""
    with _unpacked(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            try:
                characters = line.decode()
            except UnicodeDecodeError as error:
                first = first or (
                    f"0x{line[error.start]:02x} in line {number}, at byte {offset + error.start} of the file: "
                    f"{error.reason}"
                )
                num_bad += 1
                sample += line[: _SAMPLE_BYTES - len(sample)]
                characters = line.decode(errors="replace")
            good += not characters.isascii() and sum("\u07ff" < character != "\ufffd" for character in characters)
            replaced += characters.count("\ufffd")
            offset += len(line)
            if num_bad == _ENOUGH_LINES:
                break
    guesses = _guess_encodings(sample)
    names = " or ".join(name for name, _ in guesses)
    if good > replaced:
        lines = "one line" if num_bad == 1 else f"{num_bad} lines" + " or more" * (num_bad == _ENOUGH_LINES)
        looks = f", which look{'s' * (num_bad == 1)} like {names}" if guesses else ""
        return (
            f"{path} is UTF-8 but for {lines}{looks} ({first}). Correct that, or leave such bytes out: "
            f"{_convert(path, 'utf-8 -c')}"
        )
    if len(guesses) == 1:
        return f"{path} is not UTF-8 ({first}) but looks like {names}. Convert it: {_convert(path, guesses[0][1])}"
    if guesses:
        return (
            f"{path} is not UTF-8 ({first}) but looks like {names}. Convert it from the one that gives the right "
            f"text: {_convert(path, guesses[0][1])} (or -f {', -f '.join(codec for _, codec in guesses[1:])})"
        )
    return f"{path} is not UTF-8 ({first}). Save it as UTF-8; `file {shlex.quote(path)}` may tell what it is."


def _guess_encodings(sample: bytes) -> list[tuple[str, str]]:
    """(name, iconv's name) of the East Asian encodings that fit a sample: several if none fits better."""
    fitting = {}
    for name, codec, is_usual, is_typical, least in _ENCODINGS:
        text = [character for character in sample.decode(codec, errors="replace") if character > "\x7f"]
        codes = [character.encode(codec, errors="ignore") for character in text]
        if text and sum(map(is_usual, codes)) > len(text) / 2:
            is_sure = sum(map(is_typical, text)) / len(text) >= least
            is_likely = name == "GBK" and len(text) < _FEW  # what users have, and few characters prove nothing
            fitting[name, codec.replace("_", "-")] = is_sure or is_likely
    return [found for found, counts in fitting.items() if counts] or list(fitting)


def _two_bytes(leads: Sequence[int], least_trail: int = 0x40) -> Callable[[bytes], bool]:
    return lambda code: len(code) == 2 and code[0] in leads and code[1] >= least_trail


_FEW = 50  # characters
_COMMON = set(
    "的一是不了人我在有他这這中大来來上国國个個到说說们們为為子和你地出也时時年得就那要下以生会會自去之过"
    "過家学學对對可里裡后後小心多天能好都没沒日起还還成只隻看文无無开開手用主行方又如前所本见見头頭面公同"
    "三已老从動两兩长長红紅"
)
# Name, codec, which codes most of the characters have, which characters are typical and their least share. The Chinese
# standards put the usual characters first, under these first bytes, where those of the others are too.
_ENCODINGS = (
    ("GBK", "gb18030", _two_bytes(range(0xB0, 0xD8), 0xA1), _COMMON.__contains__, 0.1),
    ("Big5", "big5", _two_bytes(range(0xA4, 0xC7)), _COMMON.__contains__, 0.1),
    ("EUC-KR", "euc_kr", _two_bytes(range(0xB0, 0xC9), 0xA1), lambda letter: "\uac00" <= letter <= "\ud7a3", 0.8),
    ("Shift_JIS", "shift_jis", _two_bytes(range(0x81, 0xA0)), lambda letter: "\u3041" <= letter <= "\u30ff", 0.3),
    (
        "EUC-JP",
        "euc_jp",
        _two_bytes((*range(0xA4, 0xA6), *range(0xB0, 0xD0)), 0xA1),
        lambda letter: "\u3041" <= letter <= "\u30ff",
        0.3,
    ),
)


def read_lines(path: str) -> dict[int, str]:
    """Line number → stripped line of a text file (see `open_text`), without the empty lines.

    Raises:
        ValueError: it is not a text file, with what to do, or it holds no text.
        OSError: there is no such file.
    """
    with open_text(path) as file:
        lines = {number: line.strip() for number, line in enumerate(text_lines(file, path), 1) if line.strip()}
    if not lines:
        raise ValueError(f"{path} holds no text; one per line is expected.")
    return lines
