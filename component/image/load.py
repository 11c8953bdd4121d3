"""One image file → one upright RGB image, or the reason why not. Every part of the project decodes images here.

The cost of an image is bounded before its pixels are allocated: MAX_DECODE_BYTES to decode, MAX_ASPECT when it is
scaled, MAX_SCANS in time.
"""

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from component.image.container import BadContainerError, Container, format_of, read_container
from component.image.other_formats import what_else
from component.image.reading import BadImageError, check_size, read_bytes
from component.image.rgb import own_orientation, to_rgb

MAX_DECODE_BYTES = 2**30  # peak of decoder and result together, in addition to the file
# Peak bytes per pixel. 12: four for the image, and eight for the decoder (16 bits of four channels, coefficients of a
# progressive JPEG) or for turning the image. It leads to Pillow's own limit of 89 megapixels.
BYTES_PER_PIXEL = {"WEBP": 24, "AVIF": 32, "JPEG2000": 32}
USUAL_BYTES_PER_PIXEL = 12
MAX_ASPECT = 200  # longer side / shorter: scaled for the tower, 65,000 x 1 pixels would be 14,560,000 x 224
MAX_SCANS = 100  # of a JPEG: encoders write at most 20, and each costs the time of a decoding,
MAX_SCANNED_PIXELS = 2**31  # which is 3 ns a pixel where nothing changes; limit for all scans together

_MODES = {*"1 L LA P PA RGB RGBX RGBA RGBa CMYK YCbCr HSV I I;16 I;16B I;16L I;16N F".split()}
_LIBRARIES = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "TIFF": "libtiff", "JPEG2000": "jpg_2000"}
_DAMAGED = {"JPEG", "PNG", "GIF", "WEBP"}  # Pillow decodes all kinds of these; of the other formats it refuses some

# All plugins at once: one imported later, when no file descriptor is left, would be missing until the process ends.
Image.init()
# Pillow warns of what it repairs, and of sizes that are refused here anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")
# It also logs what the verdict says, and libtiff writes to stderr itself unless its handlers are removed.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with suppress(AttributeError, OSError):  # a Pillow without libtiff, or with libtiff linked in
    for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(Image.core.__file__), _handler)(None)
_WITHOUT_LIBRARY = {name for name, library in _LIBRARIES.items() if not features.check(library)}


class DecodedImage(NamedTuple):
    """An upright RGB image.

    Attributes:
        rgb: the pixels, perhaps at a reduced size, perhaps grey in RGB.
        size: (width, height) in pixels at full size, upright.
    """

    rgb: Image.Image
    size: tuple[int, int]


def load_image(image: str | bytes, folder: str | None = None) -> Image.Image:
    """Decode an image file completely, as people see it: RGB, upright, transparency on white, first frame.

    Args:
        image: the path or the content of a file in one of FORMATS, still or animated.
        folder: as for `read_bytes`.

    Returns:
        PIL image of mode RGB.

    Raises:
        BadImageError: the file is missing, is not an image, is damaged or cut short, or exceeds a limit.
        OSError, MemoryError: as `read_bytes`.
    """
    return decode(image, folder=folder).rgb


def decode(
    image: str | bytes,
    edge: int | None = None,
    grey: bool = False,
    stills_only: bool = False,
    folder: str | None = None,
) -> DecodedImage:
    """Decode an image file like `load_image`, a large JPEG perhaps at 1/2, 1/4 or 1/8 of its size.

    The reduced decoding saves most of the time. Whether the image is good is always the verdict of the full one: what
    the reduced decoding refuses is decoded again at full size.

    Args:
        edge: the shorter edge of the reduced image keeps at least this many pixels. None: full size.
        grey: decode a reduced JPEG to its brightness alone.
        stills_only: refuse GIFs and animations, which are not photographs, as `gif` and `animated`.

    Raises:
        BadImageError, OSError, MemoryError: as `load_image`.
    """
    content = read_bytes(image, folder) if isinstance(image, str) else image
    check_size(len(content))
    if edge is not None and format_of(content) == "JPEG":
        with suppress(BadImageError):  # libjpeg does not scale a lossless JPEG, for example
            return _decode(content, stills_only, ("L" if grey else None, (edge, edge)))
    try:
        return _decode(content, stills_only)
    except BadImageError as error:
        # The frames in its traceback and in that of Pillow's error hold the image, as long as the error is kept.
        error.__context__ = None
        raise error.with_traceback(None) from None


def _decode(content: bytes, stills_only: bool, draft: tuple | None = None) -> DecodedImage:
    """As `decode`; `draft` are the arguments of PIL's `Image.draft`."""
    with opened(content, stills_only) as found:
        if draft:
            found.image.draft(*draft)
        return DecodedImage(to_rgb(found.image, found.orientation, found.container.samples), found.size)


class OpenedImage(NamedTuple):
    """An image file whose header was read and found good, before its pixels are decoded.

    Attributes:
        image: as Pillow opened it.
        container: what Pillow was shown.
        orientation: as in EXIF, 1 to 8.
        size: (width, height) in pixels, upright.
    """

    image: Image.Image
    container: Container
    orientation: int
    size: tuple[int, int]


@contextmanager
def opened(content: bytes, stills_only: bool = False) -> Iterator[OpenedImage]:
    """Open an image file for decoding; what decoding it raises becomes a verdict as well.

    Raises:
        BadImageError, MemoryError: as `decode`.
    """
    name = format_of(content)
    if name is None:
        raise BadImageError(*what_else(content))
    if name in _WITHOUT_LIBRARY:
        raise BadImageError("no_plugin", f"this Pillow {Image.__version__} is built without {name}; update it")
    need = len(content)  # bytes
    try:
        container = read_container(name, content)
        need += _cost(name, container.pixels)
        with Image.open(io.BytesIO(container.content), formats=(name,)) as image:
            need = max(need, _cost(name, image.width * image.height))
            check_aspect(image)
            most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height))
            if container.scans > most:
                raise BadImageError("too_many_scans", f"{container.scans}; at most {most} for an image of this size")
            if image.mode not in _MODES:
                raise BadImageError("undecodable", f"{name} in the colour mode {image.mode}")
            if image.tile and image.tile[0][0] in Image.DECODERS:
                raise BadImageError("undecodable", f"{name} as {image.tile[0][0]}, which takes Python minutes")
            if stills_only and name == "GIF":
                raise BadImageError("gif")
            if stills_only and (container.is_animated or (name in ("WEBP", "AVIF") and image.is_animated)):
                raise BadImageError("animated")
            orientation = container.orientation or own_orientation(image)
            size = image.size[::-1] if orientation >= 5 else image.size
            yield OpenedImage(image, container, orientation, size)
    except BadImageError:
        raise
    except BadContainerError as error:
        raise BadImageError("truncated" if error.is_cut else "undecodable", f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise BadImageError("too_many_pixels", str(error)) from None
    except Exception as error:  # Pillow's plugins raise nearly anything (SyntaxError, struct.error, RuntimeError, …)
        if not _has_room(need):
            raise MemoryError(f"not enough memory left to decode an image ({need:,} bytes)") from error
        raise _verdict(name, error) from None


def check_aspect(image: Image.Image) -> None:
    """Raise BadImageError for an image that would take gigabytes once its shorter side is scaled up to the tower's."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadImageError("long_and_narrow", f"{image.width} x {image.height}; at most {MAX_ASPECT} : 1")


def _cost(name: str, pixels: int) -> int:
    """Bytes that decoding takes. Raises BadImageError if that is too many."""
    bytes_per_pixel = BYTES_PER_PIXEL.get(name, USUAL_BYTES_PER_PIXEL)
    if pixels * bytes_per_pixel > MAX_DECODE_BYTES:
        most = MAX_DECODE_BYTES // bytes_per_pixel
        raise BadImageError("too_many_pixels", f"{pixels:,}; at most {most:,} in a {name}")
    return pixels * bytes_per_pixel


def _has_room(size: int) -> bool:
    """Whether this much memory is free: without it, decoders call a good image broken."""
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


def _verdict(name: str, error: Exception) -> BadImageError:
    message = str(error) or type(error).__name__
    if "truncated" in message.lower() or isinstance(error, EOFError):
        return BadImageError("truncated", message)
    is_damage = name in _DAMAGED and not isinstance(error, (UnidentifiedImageError, MemoryError))
    if isinstance(error, UnidentifiedImageError):  # its message holds the address of the open file
        message = "Pillow cannot interpret its header"
    return BadImageError("broken" if is_damage else "undecodable", f"{name}: {message}")
