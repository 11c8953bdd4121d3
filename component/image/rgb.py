"""A decoded image of any mode → upright RGB, as people see it."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from component.image.tiff import EIGHT_OR_SIXTEEN_BITS, Samples, exif_orientation

_STRIP_PIXELS = 2**20
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(
    image: Image.Image, orientation: int | None = None, samples: Samples = EIGHT_OR_SIXTEEN_BITS
) -> Image.Image:
    """Convert an image to upright RGB: transparency on white, more than 8 bits scaled to 8.

    Args:
        orientation: as in EXIF, 1 to 8; None: from the image's own EXIF.
        samples: of the file, see `Container`.

    Raises:
        ValueError: floating-point samples are not between 0 and 1, so that white is not known.
    """
    image.load()
    turn = _TURNS.get(orientation or own_orientation(image))
    if image.mode.startswith("I") or samples.is_float:
        rgb = _by_strips(image, partial(_scaled_to_8_bits, samples=samples))
    elif _has_transparency(image):
        rgb = _by_strips(image, _laid_on_white)
    else:
        rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def own_orientation(image: Image.Image) -> int:
    """The orientation in the EXIF block that Pillow found, 1 to 8; 1 without one."""
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def _has_transparency(image: Image.Image) -> bool:
    if image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        return False  # an alpha byte that the writer left at 0; every program shows such a BMP as opaque
    return not {"A", "a"}.isdisjoint(image.getbands()) or "transparency" in image.info


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image strip by strip, so that intermediate results take little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _scaled_to_8_bits(grey: Image.Image, samples: Samples) -> Image.Image:
    """Pillow's own conversion would clip everything above 255 to white, and everything below 1 to black."""
    pixels = np.asarray(grey)
    if samples.is_float:
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN neither
            raise ValueError("floating-point samples beyond 0 to 1, of which no white is known")
        pixels = pixels * 255 + 0.5
    elif samples.bits > 16:
        pixels = pixels.view(np.uint32) >> samples.bits - 8  # Pillow's mode I calls them signed
    else:
        pixels = pixels.clip(0, 2**samples.bits - 1) >> samples.bits - 8
    pixels = pixels.astype(np.uint8)
    return Image.fromarray(255 - pixels if samples.is_inverted else pixels).convert("RGB")


def _laid_on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
