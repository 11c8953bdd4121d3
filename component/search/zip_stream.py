"""Images of a gallery as a zip file that is made while it is sent: one image is in memory at a time."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping

from component.gallery.rows import GalleryImage
from component.image.reading import BadImageError
from component.search.thumbnails import original


class _Chunk(io.RawIOBase):
    """A file to write to that gives back what was written since the last time."""

    def __init__(self):
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self._written.append(bytes(content))
        return len(content)

    def take(self) -> bytes:
        content, self._written = b"".join(self._written), []
        return content


def zip_stream(images: Mapping[int, GalleryImage | None]) -> Iterator[bytes]:
    """Yield the zip file in pieces. What cannot be read is named in a file of its own inside.

    Args:
        images: id → image; None if the gallery no longer has it.
    """
    chunk, names, unreadable = _Chunk(), set(), []
    with zipfile.ZipFile(chunk, "w", zipfile.ZIP_STORED) as archive:
        for row, image in images.items():
            if image is None:
                unreadable.append(f"#{row}: the gallery no longer has this image\n")
                continue
            name = os.path.basename(image.utf8_path)
            name = f"{row}_{name}" if name in names else name
            names.add(name)
            try:
                archive.writestr(name, original(image))
            except (BadImageError, MemoryError) as error:
                unreadable.append(f"{image.utf8_path}: {error}\n")
            yield chunk.take()
        if unreadable:
            archive.writestr("unreadable.txt", "".join(unreadable))
    yield chunk.take()
