"""One picture file → one upright RGB picture."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


class BadImageError(ValueError):
    """A picture that is missing, unreadable or damaged; the message is the reason without the path."""


def load_image(file: str | BinaryIO) -> Image.Image:
    """Decode a picture file completely, as people see it: RGB, upright, transparency on white, first frame.

    Args:
        file: path or open file, of any still or animated format that Pillow reads.

    Returns:
        PIL image of mode RGB.

    Raises:
        BadImageError: the file is missing, is not a picture, is cut short, or is a decompression bomb.
    """
    with _opened(file) as image:
        return to_rgb(image)


def load_draft(file: str | BinaryIO, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a picture file like `load_image`, but a large JPEG to 1/2, 1/4 or 1/8 of its size, which saves most of
    the time, as long as its shorter edge keeps `edge` pixels.

    Returns:
        The picture, and the (width, height) that `load_image` would have given it.
    """
    with _opened(file) as image:
        size = image.size
        image.draft(None, (edge, edge))
        is_lying_down = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return to_rgb(image), size[::-1] if is_lying_down else size


@contextmanager
def _opened(file: str | BinaryIO) -> Iterator[Image.Image]:
    """Whatever goes wrong with the picture, within too, is a BadImageError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it repairs (corrupt EXIF, palette bytes): the pixels decide, not the metadata.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format == "EPS":
                    raise ValueError("EPS is a program for Ghostscript, which is not run on files from the internet")
                yield image
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except UnidentifiedImageError:  # Pillow's message names the file, or the address of the open one
        raise BadImageError("UnidentifiedImageError: cannot identify image file") from None
    except Exception as error:  # Pillow's plugins raise nearly anything (SyntaxError, struct.error, KeyError, …)
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring a picture of any mode to upright RGB: EXIF rotation applied, transparency laid on white, 16 bit scaled."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip everything above 255 to white
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
