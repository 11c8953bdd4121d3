"""Small copies of a gallery's images, made once and kept on disk."""

import io
import os
from contextlib import suppress

from PIL import Image

from component.ground.files import new_file
from component.image.load import BadImageError, load_image
from component.search.gallery import GalleryImage

SIDE = 320  # pixels, of the longer side
# What a browser shows, by the format in the file itself: never by its name.
MEDIA_TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def thumbnail(image: GalleryImage, folder: str) -> bytes:
    """A JPEG of the image, upright, from `folder` or put there.

    Raises:
        BadImageError: the image is gone, damaged, or no longer the one that was indexed.
    """
    # A row that gets another image has another digest: the name says which image this is a copy of.
    path = os.path.join(folder, image.digest.hex()[:2], f"{image.digest.hex()}.jpg")
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    small = load_image(original(image))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    with suppress(OSError):  # a full or read-only disk: made again each time
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with new_file(path, "wb", sync=False) as file:
            file.write(buffer.getvalue())
    return buffer.getvalue()


def original(image: GalleryImage) -> bytes:
    """The bytes of the image as it was indexed. Raises BadImageError where it is gone or has changed."""
    state = image.state
    try:
        if state.place is None:
            status = os.stat(state.path)
            if (status.st_size, status.st_mtime_ns) != (state.size, state.mtime_ns):
                raise BadImageError("the image has changed since it was indexed")
        return state.read()
    except OSError as error:
        raise BadImageError("cannot be read", error.strerror) from None


def media_type(content: bytes) -> str | None:
    """What a browser may be told that these bytes are; None for what it had better not show."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP", "GIF"]) as image:
            return MEDIA_TYPES[image.format]
    except Exception:  # Pillow's plugins raise nearly anything
        return None
