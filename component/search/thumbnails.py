"""Small copies of a gallery's images, made once and kept on disk; and the images themselves for a browser."""

import io
import os
from contextlib import suppress

from PIL import Image

from component.gallery.rows import GalleryImage, digest_of
from component.ground.files import new_file
from component.image.load import decode, load_image
from component.image.reading import BadImageError

THUMBNAILS = "thumbnails"  # folder in the gallery
SIDE = 320  # pixels, of the longer side
# What a browser shows, by the format that the file itself states; its name does not count.
MEDIA_TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def thumbnail_path(gallery_folder: str, digest: bytes) -> str:
    """Path of the small copy of an image. It is named by the content, so it cannot be that of another image."""
    return os.path.join(gallery_folder, THUMBNAILS, digest.hex()[:2], f"{digest.hex()}.jpg")


def thumbnail(image: GalleryImage, gallery_folder: str) -> bytes:
    """A JPEG of the image, upright, at most SIDE pixels; kept in the gallery.

    Raises:
        BadImageError: the image is gone, damaged, or no longer the one that was indexed.
    """
    path = thumbnail_path(gallery_folder, image.digest)
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    small = decode(original(image), edge=SIDE).rgb
    content = _as_jpeg(small, SIDE)
    with suppress(OSError):  # disk full or read-only: make it again each time
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with new_file(path, "wb", sync=False) as file:
            file.write(content)
    return content


def original(image: GalleryImage) -> bytes:
    """The content of the image as it was indexed. Raises BadImageError if it is gone or has changed."""
    try:
        content = image.file.read()
    except OSError as error:
        raise BadImageError("unreadable", error.strerror) from None
    if digest_of(content) != image.digest:
        raise BadImageError("changed", "the image has changed since it was indexed")
    return content


def for_browser(image: GalleryImage) -> tuple[bytes, str]:
    """(content, media type) of the image in full; TIFF, BMP and others that browsers do not show become JPEG.

    Raises BadImageError as `original`, or if the image cannot be decoded.
    """
    content = original(image)
    media_type = _media_type(content)
    return (content, media_type) if media_type else (_as_jpeg(load_image(content)), "image/jpeg")


def _media_type(content: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP", "GIF"]) as image:
            return MEDIA_TYPES[image.format]
    except Exception:  # Pillow's plugins raise nearly anything
        return None


def _as_jpeg(image: Image.Image, side: int = 65_500) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
