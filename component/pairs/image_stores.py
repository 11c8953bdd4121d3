"""Where the images of a table are: files of a folder, members of a tar, lines of a tsv, or rows of a Parquet file.

A store reads an image by its locator, a text that means something to that kind of store only.
"""

import errno
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass

from component.ground.file_state import MISSING, FileState
from component.ground.remote import expect, is_remote
from component.image.reading import BadImageError, read_bytes
from component.pairs.chinese_clip import ImageTsv
from component.pairs.parquet import ParquetImages
from component.pairs.paths import image_file
from component.pairs.shards import Shard

# Errors that say that a name is not that of a file; others are those of the disk.
NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


@dataclass(frozen=True)
class ImageFolder:
    """Image files in a folder; a locator is a file name."""

    path: str

    def filename(self, locator: str) -> str:
        return locator

    def read(self, locator: str) -> bytes:
        """The bytes of an image. Raises BadImageError, also for a name that leaves the folder, and as `read_bytes`."""
        try:
            path = image_file(self.path, locator)
        except ValueError as error:
            raise BadImageError("bad_filename", str(error)) from None
        return read_bytes(path, self.path)

    def state_of(self, locator: str) -> int:
        """`FileState.number` of an image file, or MISSING. Raises OSError if the disk does not answer."""
        try:
            return FileState.of(image_file(self.path, locator)).number
        except ValueError:
            return MISSING
        except OSError as error:
            if error.errno not in NO_SUCH_FILE:
                raise
            return MISSING


# Each has `path`, `filename(locator)` and `read(locator)`; all but ImageFolder also `state`, that of the one file.
ImageStore = ImageFolder | Shard | ImageTsv | ParquetImages
STORES = {kind.__name__: kind for kind in (ImageFolder, Shard, ImageTsv, ParquetImages)}


def expect_images(images: Iterable[tuple[ImageStore, str]]) -> None:
    """Say which images, as store and locator, will be read next, in order: neighbours in a remote shard come with one
    request."""
    for store, group in itertools.groupby(images, lambda image: image[0]):
        if isinstance(store, Shard) and is_remote(store.path):
            expect(store.path, map(Shard.range_of, (locator for _, locator in group)))


def key_of(store: ImageStore, locator: str) -> str:
    """The key of an image: its file name in a folder; in a shard its name without the ending, as in webdataset."""
    name = store.filename(locator)
    if isinstance(store, ImageFolder):
        return name
    name = name[len(store.path) + 1 :]
    return os.path.splitext(name)[0] if isinstance(store, Shard) else name
