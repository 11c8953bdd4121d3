"""Pictures of a Chinese-CLIP file: one line per picture, `id<TAB>base64`."""

import base64
import binascii
import io
import os
from collections.abc import Iterator

from component.ground.file_state import MISSING, FileState
from component.ground.reading import open_to_read
from component.image.load import BadImageError
from component.pairs.shards import Shard
from component.pairs.text_file import require_plain_text

MAX_LINE_BYTES = 2**28


class ImageTsv(Shard):
    """A tsv and the state in which it was indexed; a `locator` says where in it a picture's base64 lies."""

    def read(self, locator: str) -> bytes:
        """The image's bytes. Raises BadImageError where the id is missing or its line holds no base64."""
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
        """The locator of an id that the tsv lacks: a bad picture."""
        return f"{MISSING} 0 {image_id}"

    @staticmethod
    def is_missing(locator: str) -> bool:
        return locator.startswith(f"{MISSING} ")


def index_tsv(path: str) -> tuple[ImageTsv, dict[str, str]]:
    """A tsv, and id → locator of its pictures in order. A file of many GB takes no memory.

    Raises:
        ValueError: a line is not `id<TAB>base64`, or an id occurs twice.
        OSError: the file cannot be read.
    """
    locators: dict[str, str] = {}
    offset = 0
    with open_to_read(path) as file:
        require_plain_text(path, file)
        tsv = ImageTsv(path, FileState.of(file.fileno()))
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
