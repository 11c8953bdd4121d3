"""One image file → one upright RGB image, or a verdict; every road of the project leads through here.

What an image may cost is bounded before its pixels have any room: MAX_FILE_BYTES to read, MAX_DECODE_BYTES to decode,
MAX_ASPECT to be scaled, MAX_SCANS in time.
"""

import ctypes
import errno
import io
import logging
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from component.image.container import BadContainerError, exif_orientation, format_of, read_container

MAX_FILE_BYTES = 2**27
MAX_DECODE_BYTES = 2**30  # what decoder and result take together at their peak, beside the file
# Bytes that a pixel takes at the peak, at most. 12: four for the image, and eight for the decoder (16 bits of four
# channels, coefficients of a progressive JPEG) or for turning the image; that is Pillow's own line of 89 megapixels.
BYTES_PER_PIXEL = {"WEBP": 24, "AVIF": 32, "JPEG2000": 32}
USUAL_BYTES_PER_PIXEL = 12
MAX_ASPECT = 200  # longer side / shorter: scaled for the tower, 65,000 x 1 pixels would be 14,560,000 x 224
MAX_SCANS = 100  # of a JPEG: encoders make 20 at most, and each costs the time of a decoding,
MAX_SCANNED_PIXELS = 2**31  # which is 3 ns a pixel where nothing changes; so much for all of them together

RETRY_SECONDS = (0.2, 1.0)  # pauses before an error of the environment counts
_BY_NAME = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_STRIP_PIXELS = 2**20
_MODES = {*"1 L LA P PA RGB RGBX RGBA RGBa CMYK YCbCr HSV I I;16 I;16B I;16L I;16N F".split()}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats that programs show and Pillow alone does not: how they begin, and what reads them.
_BY_PLUGIN = {
    "HEIC": (re.compile(rb"....ftyp(?:hei[cfmsvx]|hev[cmsx]|mi[af]1|msf1)", re.DOTALL), "pillow-heif"),
    "JPEG XL": (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "pillow-jxl-plugin"),
}
_LIBRARIES = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "TIFF": "libtiff", "JPEG2000": "jpg_2000"}
_DAMAGED = {"JPEG", "PNG", "GIF", "WEBP"}  # Pillow knows them whole; of the others it refuses some kinds

# All plugins at once: one that is imported later, without a file descriptor left, would be missing for good.
Image.init()
# Pillow warns of what it repairs, and of sizes that are refused here anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")
# And what the verdict says, it logs too, and libtiff writes to stderr itself, unless it is told that nobody listens.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with suppress(AttributeError, OSError):  # a Pillow without libtiff, or with it built in
    for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(Image.core.__file__), _handler)(None)
_WITHOUT_LIBRARY = {format for format, library in _LIBRARIES.items() if not features.check(library)}


class BadImageError(ValueError):
    """A verdict on an image: what its bytes or its name say. Whoever looks again finds the same.

    An error of the environment (a disk that does not answer, too many open files, no memory) is none: it stays the
    OSError or MemoryError that it is.

    Attributes:
        reason: one word to count by, where the verdict is on a file.
        detail: tells more.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MissingImageError(BadImageError):
    """There is no such file, though the folder is there."""


def load_image(image: str | bytes, folder: str | None = None) -> Image.Image:
    """Decode an image file completely, as people see it: RGB, upright, transparency on white, first frame.

    Args:
        image: the path or the content of a file in one of FORMATS, still or animated.
        folder: as for `read_bytes`.

    Returns:
        PIL image of mode RGB.

    Raises:
        BadImageError: the file is missing, is no image, is damaged or cut short, or is above a limit.
        OSError, MemoryError: as `read_bytes`.
    """
    with opened(image, folder) as found:
        return to_rgb(found.image, found.orientation)


def load_draft(image: str | bytes, edge: int, folder: str | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image file like `load_image`, but a large JPEG to 1/2, 1/4 or 1/8 of its size, which saves most of
    the time, as long as its shorter edge keeps `edge` pixels.

    Returns:
        The image, and the (width, height) that `load_image` would have given it.
    """
    with opened(image, folder) as found:
        size = found.image.size
        found.image.draft(None, (edge, edge))
        return to_rgb(found.image, found.orientation), size[::-1] if found.orientation >= 5 else size


def read_bytes(path: str, folder: str | None = None) -> bytes:
    """The content of an image file.

    Args:
        folder: one that must be there for a missing file to be a verdict; by default the file's own.

    Raises:
        BadImageError: `no such file`, `bad_filename`, `not_a_file` or `too_large`.
        OSError: whatever else keeps the file from being read, after three attempts; it names the path.
        MemoryError: there is none for so many bytes.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            return _read_path(path)
        except ValueError as error:
            raise error if isinstance(error, BadImageError) else BadImageError("bad_filename", str(error)) from None
        except (OSError, MemoryError) as error:
            if isinstance(error, FileNotFoundError) and _is_there(folder or os.path.dirname(path) or "."):
                raise MissingImageError("no such file") from None
            if getattr(error, "errno", None) in _BY_NAME:
                raise BadImageError("not_a_file", error.strerror) from None
            if seconds is None:
                raise
        time.sleep(seconds)


def _is_there(folder: str) -> bool:
    """A folder without anything in it is where a disk was, or is to be."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _read_path(path: str) -> bytes:
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("not_a_file", "a folder, a pipe or a device")
        _check_bytes(status.st_size)
        try:
            return file.read()
        except OSError as error:  # as it comes from `read`, it names no file
            raise OSError(error.errno, error.strerror, path) from None


def _open_at_once(path: str, flags: int) -> int:
    """Whoever opens a named pipe waits for somebody to write into it, unless told not to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadImageError("too_large", f"{size:,} bytes; at most {MAX_FILE_BYTES:,}")


class OpenedImage(NamedTuple):
    """An image whose header is read, not its pixels; `orientation` is that of EXIF, 1 to 8."""

    image: Image.Image
    orientation: int
    is_animated: bool


@contextmanager
def opened(image: str | bytes, folder: str | None = None) -> Iterator[OpenedImage]:
    """Read the header of an image, and let the block decode it: whatever Pillow raises there is a verdict too.

    Raises:
        BadImageError: as `load_image`.
        OSError, MemoryError: as `read_bytes`; MemoryError also where there is none for the pixels.
    """
    content = read_bytes(image, folder) if isinstance(image, str) else image
    del image  # while the pixels are decoded, the file is in memory once, unless the caller keeps it
    _check_bytes(len(content))
    format = format_of(content)
    if format is None:
        raise BadImageError(*_what_else(content))
    if format in _WITHOUT_LIBRARY:
        raise BadImageError("no_plugin", f"this Pillow {Image.__version__} is built without {format}; update it")
    need = len(content)  # bytes
    try:
        container = read_container(format, content)
        del content
        need += _cost(format, container.pixels)
        with Image.open(io.BytesIO(container.content), formats=(format,)) as found:
            need = max(need, _cost(format, found.width * found.height))
            check_aspect(found)
            most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (found.width * found.height))
            if container.scans > most:
                raise BadImageError("too_many_scans", f"{container.scans}; at most {most} of an image so large")
            if found.mode not in _MODES:
                raise BadImageError("undecodable", f"{format} in the colours {found.mode}")
            if found.tile and found.tile[0][0] in Image.DECODERS:
                raise BadImageError("undecodable", f"{format} as {found.tile[0][0]}, which takes Python minutes")
            is_animated = container.is_animated or (format in ("WEBP", "AVIF") and found.is_animated)
            yield OpenedImage(found, container.orientation or _pillow_orientation(found), is_animated)
    except BadImageError:
        raise
    except BadContainerError as error:
        raise BadImageError("truncated" if error.is_cut else "undecodable", f"{format}: {error}") from None
    except Image.DecompressionBombError as error:
        raise BadImageError("too_many_pixels", str(error)) from None
    except Exception as error:  # Pillow's plugins raise nearly anything (SyntaxError, struct.error, RuntimeError, …)
        if not _has_room(need):
            raise MemoryError(f"not enough memory left to decode an image ({need:,} bytes)") from error
        raise _verdict(format, error) from None


def _cost(format: str, pixels: int) -> int:
    """The bytes that decoding takes. Raises BadImageError where they are too many."""
    bytes_per_pixel = BYTES_PER_PIXEL.get(format, USUAL_BYTES_PER_PIXEL)
    if pixels * bytes_per_pixel > MAX_DECODE_BYTES:
        most = MAX_DECODE_BYTES // bytes_per_pixel
        raise BadImageError("too_many_pixels", f"{pixels:,}; at most {most:,} in a {format}")
    return pixels * bytes_per_pixel


def check_aspect(image: Image.Image) -> None:
    """Refuse, as BadImageError, what would be gigabytes once its shorter side is scaled up to the tower's."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadImageError("long_and_narrow", f"{image.width} x {image.height}; at most {MAX_ASPECT} : 1")


def _has_room(size: int) -> bool:
    """Where there is none, a decoder calls the best of images broken."""
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


def _verdict(format: str, error: Exception) -> BadImageError:
    message = str(error) or type(error).__name__
    if "truncated" in message.lower() or isinstance(error, EOFError):
        return BadImageError("truncated", message)
    is_damage = format in _DAMAGED and not isinstance(error, (UnidentifiedImageError, MemoryError))
    if isinstance(error, UnidentifiedImageError):  # its message holds the address of the open file
        message = "Pillow does not know what its header says"
    return BadImageError("broken" if is_damage else "undecodable", f"{format}: {message}")


def _what_else(content: bytes) -> tuple[str, str]:
    """Reason and detail for what came in place of an image."""
    start = content[:1024].lower()
    if not start:
        return "empty", ""
    if b"<svg" in start:
        return "svg", ""
    if b"<html" in start or b"<!doctype html" in start:
        return "html", ""
    for name, (magic, plugin) in _BY_PLUGIN.items():
        if magic.match(content):
            return "no_plugin", f"{name}; convert it to JPEG, for example with {plugin}"
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(Exception):
            if accepts and accepts(content[:16]) is True:
                return "other_format", name
    return "not_image", ""


def _pillow_orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def to_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Bring an image of any mode to upright RGB: transparency laid on white, 16 bit scaled.

    Args:
        orientation: as in EXIF; None: as the image's own EXIF tells.
    """
    image.load()
    turn = _TURNS.get(orientation or _pillow_orientation(image))
    if image.mode.startswith("I"):
        rgb = _by_strips(image, _scaled_to_8_bits)
    elif _has_transparency(image):
        rgb = _by_strips(image, _laid_on_white)
    else:
        rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _has_transparency(image: Image.Image) -> bool:
    if image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        return False  # a byte that nobody filled; every program shows such a BMP as opaque
    return "A" in image.getbands() or "transparency" in image.info


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image in pieces, so that what lies in between takes little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _scaled_to_8_bits(grey: Image.Image) -> Image.Image:
    """Pillow's own conversion would clip everything above 255 to white."""
    return Image.fromarray((np.asarray(grey).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")


def _laid_on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
