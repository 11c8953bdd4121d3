"""Which files a name stands for, and what is in each of them by its first bytes."""

import enum
import glob
import os
import re
from collections.abc import Sequence

from component.ground.reading import is_file, open_to_read
from component.ground.remote import is_remote, remote_glob
from component.pairs.json_text import parse_json
from component.pairs.text_file import open_text

_PARTS = re.compile(r".+\.(csv|tsv|json|jsonl|ndjson|parquet)(\.gz)?", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?[]")
_HEAD_CHARACTERS = 2**20
_PARQUET_HEAD = b"PAR1"  # the first bytes of a Parquet file
_METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)")  # of a Hugging Face imagefolder
# A name and a number, such as `1.jpg#zhc#0` in Flickr8k-CN, or only a number; then a tab or blank and the caption.
CAPTION_LINE = re.compile(r"\ufeff?(?P<name>[^\s#]+(?=#)|\d+|[^\s,]+\.(?:jpe?g|png))(?:#\S*)?[\t ]\s*(?P<text>\S.*)")


class Kind(enum.Enum):
    """What is in a file. The values are for messages."""

    SHARD = "a WebDataset shard"
    PARQUET = "a Parquet table"
    CSV = "a CSV"
    JSON_TABLE = "a JSON table"
    CAPTIONS_JSON = "COCO's or Karpathy's JSON"
    CAPTION_LINES = "lines of a name and a caption"
    CHINESE_CLIP = "Chinese-CLIP's texts next to a tsv of images"


def kind_of(path: str) -> Kind:
    """Tell what is in a file by its content; a shard by its name.

    What is none of these, or is missing, counts as a CSV, whose reader says what is wrong.

    Raises:
        OSError: the file cannot be read.
    """
    if is_shard(path):
        return Kind.SHARD
    path, split = file_and_split(path)
    if split:
        return Kind.CAPTIONS_JSON
    if not is_file(path):
        return Kind.CSV
    with open_to_read(path) as file:
        if file.read(len(_PARQUET_HEAD)) == _PARQUET_HEAD:
            return Kind.PARQUET
    try:
        with open_text(path) as file:
            line = file.read(_HEAD_CHARACTERS).lstrip("\ufeff \t\r\n").partition("\n")[0]
    except ValueError:
        return Kind.CSV
    if line.startswith("["):
        return Kind.JSON_TABLE
    if not line.startswith("{"):
        return Kind.CAPTION_LINES if CAPTION_LINE.match(line) else Kind.CSV
    try:
        record = parse_json(line)
    except ValueError:  # a JSON of several lines, or of one long line
        return Kind.CAPTIONS_JSON
    if isinstance(record.get("images"), list):
        return Kind.CAPTIONS_JSON
    return Kind.CHINESE_CLIP if {"image_ids", "item_ids"} & record.keys() else Kind.JSON_TABLE


def file_and_split(path: str) -> tuple[str, str | None]:
    """`dataset.json#train` → the file and its split; a path without a split, or a file of that very name → itself."""
    file, mark, split = path.rpartition("#")
    return (file, split) if mark and not os.path.exists(path) and os.path.isfile(file) else (path, None)


def is_shard(path: str) -> bool:
    return path.lower().endswith(".tar")


def pair_files(files: str | Sequence[str]) -> list[str]:
    """The files that one name or several stand for, in order: `expand`, with each folder replaced by its parts."""
    return [part for path in expand(files) for part in parts_of(path)]


def require_own_names(files: Sequence[str]) -> None:
    """Raise ValueError if two files have the same name, after which what is written about each is named."""
    by_name: dict[str, str] = {}
    for file in files:
        if (other := by_name.setdefault(os.path.basename(file), file)) != file:
            raise ValueError(
                f"{other} and {file} have the same name, and what is written about each is named after it. Take them "
                "one after the other, each with an output folder of its own, or rename one of them."
            )


def parts_of(path: str) -> list[str]:
    """The files of a table: the path itself; of a folder the tables in it, as Spark writes them, sorted by path.

    Of a folder of shards, those: img2dataset writes tables of what it did next to them. Of a folder of images with a
    metadata file, as Hugging Face's imagefolder, that file.

    Raises:
        ValueError: the folder holds neither.
    """
    if not os.path.isdir(path):
        return [path]
    parts, shards = [], []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        if metadata := next(filter(_METADATA.fullmatch, sorted(names)), None):
            return [os.path.join(folder, metadata)]
        parts += [
            os.path.join(folder, name) for name in sorted(names) if name[0] not in "._" and _PARTS.fullmatch(name)
        ]
        shards += [os.path.join(folder, name) for name in sorted(names) if name[0] not in "._" and is_shard(name)]
    if not parts and not shards:
        raise ValueError(
            f"the folder {path} holds no shard, no table (CSV, TSV, JSON or Parquet) and no metadata file."
        )
    return shards or parts


def expand(files: str | Sequence[str]) -> list[str]:
    """One name or several → the paths they stand for, in order.

    `{00000..00999}` and `{a,b}` mean what they mean in a shell; `*`, `?` and `[…]` the files that match, sorted. A
    pattern that no file matches stays as it is.
    """
    paths = []
    for pattern in [files] if isinstance(files, str) else files:
        for path in [pattern] if os.path.exists(pattern) else _expand_braces(pattern):
            if os.path.exists(path) or not _WILDCARD.search(path):
                paths.append(path)
            else:
                paths += (remote_glob(path) if is_remote(path) else sorted(glob.glob(path))) or [path]
    return paths


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, names = match.groups()
    if names is None:
        step = 1 if int(first) <= int(last) else -1
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + step, step)]
    else:
        choices = names.split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [path for choice in choices for path in _expand_braces(before + choice + after)]
