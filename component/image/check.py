"""Is this file usable as a training image? Its content decides, not its name or the server's Content-Type."""

from contextlib import suppress
from typing import BinaryIO

from PIL import Image

from component.image.container import format_of
from component.image.fast_jpeg import packages, shrink_jpeg
from component.image.load import DecodedImage, decode, opened
from component.image.reading import BadImageError

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


def shrink_image(content: bytes, out: BinaryIO, shorter_side: int) -> None:
    """Write an image file upright, as RGB JPEG, its shorter side at most `shorter_side` pixels; never enlarged.

    An ordinary JPEG goes through the packages of `fast_jpeg`, if they are installed. What they refuse or only warn of,
    and everything else, is Pillow's, with Hamming's filter: as sharp as bicubic when shrinking, in two thirds of the
    time.

    Raises:
        BadImageError: as `check_image`.
    """
    if packages() and format_of(content) == "JPEG":
        with suppress(BadImageError), opened(content, stills_only=True) as found:
            size = _shrunk(found.size, shorter_side)
            if found.image.mode == "RGB" and found.orientation == 1 and max(size) <= MAX_JPEG_SIDE:
                out.write(shrink_jpeg(found.container.content, size, JPEG_QUALITY))
                return
    # Twice the pixels that are needed leave enough for a good filter.
    rgb, full_size = decode(content, 2 * shorter_side, stills_only=True)
    if (size := _shrunk(full_size, shorter_side)) != full_size:
        rgb = rgb.resize(size, Image.Resampling.HAMMING)
    if max(rgb.size) > MAX_JPEG_SIDE:
        raise BadImageError("long_and_narrow", f"{rgb.width} x {rgb.height} is more than a JPEG can hold")
    rgb.save(out, "JPEG", quality=JPEG_QUALITY)


def _shrunk(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    factor = min(shorter_side / min(size), 1)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
