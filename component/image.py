"""One picture file → one upright RGB picture."""

import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps


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
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it repairs (corrupt EXIF, palette bytes): the pixels decide, not the metadata.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise BadImageError("no such file") from None
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
