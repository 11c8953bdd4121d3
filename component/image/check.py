"""Is this file a picture? The content decides, never the name or what a server called it."""

import contextlib
import struct
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from component.image.load import to_rgb

# Left out on purpose: EPS (Pillow hands it to Ghostscript, a program that runs what it reads) and the formats that
# no web page shows.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "GIF")
MAX_PIXELS = 89_478_485  # Pillow's own line for a decompression bomb: 256 MB as RGB
JPEG_QUALITY = 95


class RefusedImageError(ValueError):
    """A file that is no usable picture; `reason` is one word to count by, `detail` tells more."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class CheckedImage:
    """A whole picture: its size in pixels as stored, and the decoded pixels, perhaps reduced and grey."""

    width: int
    height: int
    reduced: Image.Image


def open_image(file: BinaryIO) -> Image.Image:
    """Read the header of a picture, without decoding it.

    Raises:
        RefusedImageError: `empty`, `html`, `svg`, `not_image`, `truncated`, `gif`, `animated` or
            `too_many_pixels`.
    """
    Image.init()  # fills Image.OPEN; AVIF and WebP are there only when Pillow was built with them
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise RefusedImageError(_what_else(file)) from None
    except Image.DecompressionBombError as error:
        raise RefusedImageError("too_many_pixels", str(error)) from None
    except (OSError, SyntaxError, ValueError, struct.error, KeyError, OverflowError) as error:
        raise RefusedImageError("truncated" if _is_cut(error) else "not_image", str(error)) from None
    try:
        if image.format == "GIF":
            raise RefusedImageError("gif")
        # MPO and TIFF count pages as frames; a phone's MPO is an ordinary photograph
        if image.format in ("WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
            raise RefusedImageError("animated")
        if image.width * image.height > MAX_PIXELS:
            raise RefusedImageError("too_many_pixels", f"{image.width} x {image.height}")
    except RefusedImageError:
        image.close()
        raise
    return image


def check_image(file: BinaryIO, side: int = 1) -> CheckedImage:
    """Read a picture to its last byte.

    JPEG is decoded to grey at down to an eighth of its size, but no smaller than `side` x `side`: every coded bit is
    still read, so damage is found all the same (the tests compare the verdicts), in half the time.

    Raises:
        RefusedImageError: as `open_image`, and `broken`.
    """
    with open_image(file) as image:
        width, height = image.size
        image.draft("L", (side, side))
        with _damage_refused():
            image.load()
    return CheckedImage(width, height, image)


def shrink_image(file: BinaryIO, out: BinaryIO, shorter_side: int) -> None:
    """Write the picture upright, as RGB JPEG, its shorter side at most `shorter_side` pixels; never enlarged.

    Hamming's filter: as sharp as bicubic when shrinking, at two thirds of the time.

    Raises:
        RefusedImageError: as `check_image`.
    """
    with open_image(file) as image:
        factor = shorter_side / min(image.size)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8: take the smallest that leaves twice the pixels for a good filter.
        image.draft(None, (round(2 * factor * image.width), round(2 * factor * image.height)))
        with _damage_refused():
            upright = to_rgb(image)
    factor = shorter_side / min(upright.size)
    if factor < 1:
        size = max(1, round(upright.width * factor)), max(1, round(upright.height * factor))
        upright = upright.resize(size, Image.Resampling.HAMMING)
    upright.save(out, "JPEG", quality=JPEG_QUALITY)


@contextlib.contextmanager
def _damage_refused():
    try:
        yield
    except Exception as error:  # Pillow's plugins raise nearly anything (SyntaxError, struct.error, zlib.error, …)
        raise RefusedImageError("truncated" if _is_cut(error) else "broken", str(error)) from None


def _is_cut(error: Exception) -> bool:
    return "truncated" in str(error).lower() or isinstance(error, EOFError)


def _what_else(file: BinaryIO) -> str:
    """Name what came in place of a picture."""
    file.seek(0)
    start = file.read(1024).lower()
    if not start:
        return "empty"
    if b"<svg" in start:
        return "svg"
    if b"<html" in start or b"<!doctype html" in start:
        return "html"
    return "not_image"
