"""The files of one data set, of whatever kind: pairs in order, each with where its picture lies."""

import errno
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from component.ground.file_state import MISSING, FileState
from component.image.load import BadImageError, read_bytes
from component.pairs.labelled import read_chinese_clip, read_coco, tsv_of
from component.pairs.parquet import read_parquet
from component.pairs.paths import image_file, needs_normal_name, normal_name
from component.pairs.shards import IndexShards, Shard, index_shards, read_shards
from component.pairs.table import read_pairs

# What the system says of a name that stands for no file; all else is said of the disk.
NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


@dataclass(frozen=True)
class ImageFolder:
    """Pictures as files of a folder; what `Shard` is for those in a tar. A `locator` is the file name."""

    path: str

    def filename(self, locator: str) -> str:
        return locator

    def read(self, locator: str) -> bytes:
        """The image's bytes. Raises BadImageError, also for a name that leaves the folder, and as `read_bytes`."""
        try:
            path = image_file(self.path, locator)
        except ValueError as error:
            raise BadImageError(str(error)) from None
        return read_bytes(path, self.path)

    def identity(self) -> str:
        """A text that no other place has."""
        return os.path.abspath(self.path)

    def state(self, locator: str) -> int:
        """`FileState.number` of the image file, or MISSING. Raises OSError."""
        try:
            return FileState.of(image_file(self.path, locator)).number
        except ValueError:
            return MISSING
        except OSError as error:
            if error.errno not in NO_SUCH_FILE:
                raise
            return MISSING


Place = ImageFolder | Shard  # an ImageTsv is a Shard in this


def is_shard(path: str) -> bool:
    return path.lower().endswith(".tar")


def needs_folder(path: str) -> bool:
    """Whether the file names in it are relative to a folder, image_path."""
    return not path.lower().endswith((".tar", ".jsonl"))


def check_pair_files(files: str | Sequence[str], image_path: str | None) -> None:
    """Raise what can be known before anything is read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a format that is none of `read_pair_files`, or `image_path` is not what a format needs.
    """
    for path in expand(files):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file.")
        _require_plain_tar(path)
        if path.lower().endswith(".jsonl"):
            tsv_of(path, image_path)
        elif needs_folder(path) and not (image_path and os.path.isdir(image_path)):
            raise ValueError(f"{image_path} is no folder; the file names in {path} are relative to one.")


def _require_plain_tar(path: str) -> None:
    if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", path.lower()):
        raise ValueError(f"{path} is a packed tar, in which no picture can be reached. Unpack it to a plain .tar.")


def expand(files: str | Sequence[str]) -> list[str]:
    """One name or several → the paths they stand for, in order.

    `{00000..00999}` and `{a,b}` mean what they mean in a shell, `*`, `?` and `[…]` the files that match, sorted. A
    pattern that no file matches stays as it is.
    """
    paths = []
    for pattern in [files] if isinstance(files, str) else files:
        for path in [pattern] if os.path.exists(pattern) else _expand_braces(pattern):
            paths += [path] if os.path.exists(path) else sorted(glob.glob(path)) or [path]
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


def read_pair_files(
    files: str | Sequence[str],
    image_path: str | None,
    index_shards: IndexShards = index_shards,
    whole_gallery: bool = False,
) -> Iterator[tuple[Place, pd.DataFrame]]:
    """Yield the pairs of all files in order, in chunks whose pictures lie in one place.

    Args:
        files: see `expand`. `.tar` is a WebDataset shard, `.parquet` a table, `.jsonl` Chinese-CLIP's texts, `.json`
            COCO's captions, and anything else a CSV.
        image_path: folder that the file names are relative to; for .jsonl see `tsv_of`.
        index_shards: see `read_shards`.
        whole_gallery: yield also the pictures of .jsonl and .json that no text names.

    Yields:
        The place, and the columns `text` and `filename`, which is a locator in that place, by its normal name where
        the place is a folder; of .jsonl and .json also `query`, see `component.pairs.labelled`.

    Raises:
        FileNotFoundError, ValueError, ImportError: as the readers of the formats.
    """
    for are_shards, paths in itertools.groupby(expand(files), is_shard):
        if are_shards:
            for index in read_shards(list(paths), index_shards):
                yield index.shard, pd.DataFrame({"text": index.texts, "filename": index.locators}, dtype=str)
            continue
        for path in paths:
            _require_plain_tar(path)
            if path.lower().endswith(".jsonl"):
                yield from read_chinese_clip(path, image_path, whole_gallery)
                continue
            for chunk in _read_table(path, whole_gallery):
                names = chunk["filename"].tolist()
                if needs_normal_name("\n".join(names)):  # asked once, because most tables have none
                    chunk["filename"] = list(map(normal_name, names))
                yield ImageFolder(image_path), chunk


def _read_table(path: str, whole_gallery: bool) -> Iterator[pd.DataFrame]:
    ending = os.path.splitext(path)[1].lower()
    if ending == ".json":
        return read_coco(path, whole_gallery)
    if ending == ".parquet":
        return read_parquet(path, ("text", "filename"))
    return read_pairs(path, ("text", "filename"), only_required=True)
