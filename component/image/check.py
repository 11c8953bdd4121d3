"""Is this file usable as a training image? Its content decides, not its name or the server's Content-Type."""

from typing import BinaryIO

from PIL import Image

from component.image.load import BadImageError, DecodedImage, decode

JPEG_QUALITY = 95
MAX_JPEG_SIDE = 65_500  # libjpeg's limit


def check_image(image: str | bytes, edge: int = 1) -> DecodedImage:
    """Decode an image file to its last byte, and refuse what is not a photograph.

    A JPEG is decoded to grey at down to an eighth of its size, in half the time. Every coded bit is still read, so
    damage is found all the same (the tests compare the verdicts).

    Args:
        image: the path or the content of the file.
        edge: the shorter edge of a reduced JPEG keeps at least this many pixels.

    Raises:
        BadImageError: as `load_image`; in addition `gif` and `animated`.
    """
    return decode(image, edge, grey=True, stills_only=True)


def shrink_image(image: str | bytes, out: BinaryIO, shorter_side: int) -> None:
    """Write an image file upright, as RGB JPEG, its shorter side at most `shorter_side` pixels; never enlarged.

    Hamming's filter: as sharp as bicubic when shrinking, in two thirds of the time.

    Raises:
        BadImageError: as `check_image`.
    """
    # Twice the pixels that are needed leave enough for a good filter.
    rgb, size = decode(image, 2 * shorter_side, stills_only=True)
    factor = shorter_side / min(size)
    if factor < 1:
        size = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        rgb = rgb.resize(size, Image.Resampling.HAMMING)
    if max(rgb.size) > MAX_JPEG_SIDE:
        raise BadImageError("long_and_narrow", f"{rgb.width} x {rgb.height} is more than a JPEG can hold")
    rgb.save(out, "JPEG", quality=JPEG_QUALITY)
