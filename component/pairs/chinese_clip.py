"""Chinese-CLIP's data sets: texts as JSON lines, and a tsv with one image per line, `id<TAB>base64`."""

import base64
import binascii
import io
import os
from collections.abc import Iterator

import pandas as pd

from component.ground.file_state import MISSING, FileState
from component.ground.reading import open_to_read
from component.image.reading import BadImageError
from component.pairs.json_text import name_at, parse_json, take
from component.pairs.labelled import labelled_frames
from component.pairs.shards import Shard
from component.pairs.text_file import open_text, require_plain_text, text_lines

MAX_LINE_BYTES = 2**28
# What Chinese-CLIP calls the text and the images of a line, and what the raw files of MUGE call them.
_KEYS = (("text", "image_ids"), ("query_text", "item_ids"))


def read_chinese_clip(
    path: str, image_path: str | None, whole_gallery: bool = False
) -> Iterator[tuple["ImageTsv", pd.DataFrame]]:
    """Lines of {"text_id", "text", "image_ids"}, or of MUGE's {"query_id", "query_text", "item_ids"}, and their tsv.

    Args:
        image_path: see `tsv_of`.
        whole_gallery: yield each image of the tsv first, with the query GALLERY, as MUGE counts them.

    Raises:
        ValueError: a malformed file; the message names the line.
    """
    tsv, locators = index_tsv(tsv_of(path, image_path))

    def rows() -> Iterator[tuple[str, str, str]]:
        with open_text(path) as file:
            for number, line in enumerate(text_lines(file, path), 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                entry = parse_json(line, where)
                text_key, ids_key = _KEYS[isinstance(entry, dict) and _KEYS[1][0] in entry]
                text, ids = take(entry, where, **{text_key: str, ids_key: list})
                for image_id in dict.fromkeys(name_at(value, where, ids_key) for value in ids):
                    yield text, locators.get(image_id, ImageTsv.missing(image_id)), where

    for chunk in labelled_frames(rows(), locators.values() if whole_gallery else ()):
        yield tsv, chunk


def tsv_of(path: str, image_path: str | None) -> str:
    """The tsv of some texts: `image_path` itself, or the file of Chinese-CLIP's name for it in that folder or next to
    the texts (X_texts.jsonl or X_queries.jsonl → X_imgs.tsv). Raises ValueError if there is none."""
    name = os.path.splitext(os.path.basename(path))[0].removesuffix("_texts").removesuffix("_queries") + "_imgs.tsv"
    folders = filter(None, (image_path, os.path.dirname(os.path.abspath(path))))
    for candidate in filter(None, (image_path, *(os.path.join(folder, name) for folder in folders))):
        if os.path.isfile(candidate):
            return candidate
    given = f"{image_path} is neither that file nor a folder with it; " if image_path else ""
    raise ValueError(
        f"{given}{path} needs the tsv of its images (id<TAB>base64) as image_path, or as {name} in that folder or "
        "next to it."
    )


class ImageTsv(Shard):
    """A tsv in one state; a locator says where in it the base64 of an image is."""

    def read(self, locator: str) -> bytes:
        """The bytes of an image. Raises BadImageError if the id is missing or its line is not base64."""
        if self.is_missing(locator):
            raise BadImageError(f"not in {os.path.basename(self.path)}")
        encoded = super().read(locator)
        try:
            # The url-safe decoder reads the standard alphabet too; both occur.
            return base64.urlsafe_b64decode(encoded.strip())
        except binascii.Error as error:
            raise BadImageError(f"not base64: {error}") from error

    @staticmethod
    def missing(image_id: str) -> str:
        """The locator of an id that the tsv does not have: a bad image."""
        return f"{MISSING} 0 {image_id}"

    @staticmethod
    def is_missing(locator: str) -> bool:
        return locator.startswith(f"{MISSING} ")


def index_tsv(path: str) -> tuple[ImageTsv, dict[str, str]]:
    """A tsv, and id → locator of its images in order. Only the index is in memory.

    Raises:
        ValueError: a line is not `id<TAB>base64`, or an id occurs twice.
        OSError: the file cannot be read.
    """
    locators: dict[str, str] = {}
    offset = 0
    with open_to_read(path) as file:
        require_plain_text(path, file)
        tsv = ImageTsv(path, FileState.of(file))
        for number, line in enumerate(_lines(file, path), 1):
            image_id, tab, encoded = line.partition(b"\t")
            name = image_id.decode("utf-8-sig", errors="replace").strip()
            if line.strip():
                if not tab:
                    raise ValueError(f"{path}, line {number}: expected id<TAB>base64, found no tab.")
                if name in locators:
                    raise ValueError(f"{path}, line {number}: the id {name} occurs twice.")
                locators[name] = f"{offset + len(image_id) + 1} {len(encoded)} {name}"
            offset += len(line)
    return tsv, locators


def _lines(file: io.BufferedReader, path: str) -> Iterator[bytes]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
        if len(line) == MAX_LINE_BYTES:
            raise ValueError(f"{path}, line {number} has more than {MAX_LINE_BYTES:,} bytes. Is it the right file?")
        yield line
