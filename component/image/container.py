"""An image file reduced to its pixels, so that no comment, profile or EXIF tag decides what a decoder does.

Pillow reads metadata before pixels: one odd tag makes it fail, and a megabyte of tags that all point at the same bytes
becomes gigabytes. Kept here is what the pixels depend on, and from EXIF only the orientation.
"""

import re
import struct
from typing import NamedTuple

from component.image.tiff import EIGHT_OR_SIXTEEN_BITS, Samples, exif_orientation, full_image

MAX_PARTS = 100_000  # segments, chunks or blocks of a file
FEW_SCANS = 20  # of a JPEG: so few are counted roughly
TILE_PIXELS = 400  # the tables of one JPEG 2000 tile take the memory of this many pixels
MAX_CODESTREAM_OFFSET = 2**20  # bytes of boxes before the pixels of a JPEG 2000

# Format → how its files begin. Left out on purpose: EPS, which Pillow hands to Ghostscript, a program that executes
# what it reads; formats that Pillow decodes in Python, pixel by pixel (PPM, TGA, …); and icons, which contain other
# formats.
_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBPVP8[ XL]",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(?:avi[fs]|.{8}(?:.{4}){0,30}?avi[fs])",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
}
FORMATS = tuple(_MAGIC)
_ANY_MAGIC = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), magic) for name, magic in _MAGIC.items()), re.DOTALL)


class BadContainerError(ValueError):
    """The structure of a file is invalid; `is_cut` if its end is missing."""

    def __init__(self, message: str, is_cut: bool = False):
        super().__init__(message)
        self.is_cut = is_cut


class Container(NamedTuple):
    """The part of a file that a decoder may see, and what must be known before it allocates pixels.

    Attributes:
        content: the file without metadata.
        orientation: as in EXIF, 1 to 8; 0 if Pillow has to find it.
        pixels: number of pixels that the decoder allocates at least.
        scans: number of times that the decoder goes over all pixels.
        is_animated: the file holds more than one image, and Pillow is not shown the others.
        samples: of a grey image in more than 8 bits.
    """

    content: bytes
    orientation: int = 0
    pixels: int = 0
    scans: int = 1
    is_animated: bool = False
    samples: Samples = EIGHT_OR_SIXTEEN_BITS


def format_of(content: bytes) -> str | None:
    """One of FORMATS, from the first bytes; None for anything else."""
    match = _ANY_MAGIC.match(content[:256])
    return match.lastgroup if match else None


def read_container(name: str, content: bytes) -> Container:
    """Take apart a file of the format `name`, one of FORMATS. Raises BadContainerError."""
    try:
        return _READERS.get(name, Container)(content)
    except BadContainerError:
        raise
    except ValueError as error:
        raise BadContainerError(str(error)) from None
    except (struct.error, IndexError, OverflowError):
        raise BadContainerError("truncated in its header", is_cut=True) from None


# ---- JPEG ----

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_WITHOUT_BODY = {0x00, 0x01, *range(0xD0, _EOI)}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_COLOUR_MARKERS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
# In coded pixels, 0xFF 0x00 stands for 0xFF, and restart markers may occur anywhere.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def _read_jpeg(content: bytes) -> Container:
    view = memoryview(content)  # its slices are not copies
    kept, position, orientation = [view[:2]], 2, 0
    is_progressive, components = False, 0
    for _ in range(MAX_PARTS):
        position = content.find(b"\xff", position)
        marker = content[position + 1] if position >= 0 else _EOI
        if marker == _EOI:
            raise BadContainerError("ends before its pixels", is_cut=True)
        if marker == 0xFF or marker in _WITHOUT_BODY:
            position += 1 if marker == 0xFF else 2
            continue
        body, end = position + 4, position + 2 + struct.unpack_from(">H", content, position + 2)[0]
        if marker == _SOS:
            kept.append(view[position:])
            # A baseline decoder stops after a scan of all components; any other continues with the next scan.
            goes_on = is_progressive or content[body] < components
            return Container(b"".join(kept), orientation, scans=_count_scans(content, position) if goes_on else 1)
        if marker in _FRAMES:
            is_progressive, components = marker in _PROGRESSIVE, content[body + 5]
        if marker == _APP1 and not orientation and content.startswith(b"Exif\0\0", body):
            orientation = exif_orientation(content[body:end])
        if marker not in _METADATA or content.startswith(_COLOUR_MARKERS.get(marker, b"\xff\xff"), body):
            kept.append(view[position:end])
        position = end
    raise BadContainerError(f"more than {MAX_PARTS} segments")


def _count_scans(jpeg: bytes, position: int) -> int:
    """The number of scans from the first one, at `position`, on."""
    at_most = jpeg.count(b"\xff\xda", position)
    if at_most <= FEW_SCANS:
        return at_most
    number = 0
    while (found := _MARKER.search(jpeg, position)) and found[1][0] != _EOI:
        number += found[1][0] == _SOS
        length = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 2)
    return number


# ---- PNG, TIFF, GIF and the others ----

_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS"}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _read_png(content: bytes) -> Container:
    if content[12:16] == b"CgBI":
        raise BadContainerError("a PNG for iPhones (CgBI), which is not PNG inside")
    view = memoryview(content)  # its slices are not copies
    kept, pixels, position, orientation, is_animated = [view[:8]], [], 8, 0, False
    for _ in range(MAX_PARTS):
        header = content[position : position + 8]
        if len(header) < 8 or header[4:] == b"IEND":
            break
        body = position + 8
        end = body + int.from_bytes(header[:4], "big")
        kind = header[4:]
        if kind == b"IDAT":
            pixels.append(view[body:end])
        elif kind in _PNG_PIXELS:
            kept.append(view[position : end + 4])
        elif kind == b"eXIf":
            orientation = exif_orientation(content[body:end])
        elif kind == b"acTL" and not pixels:
            is_animated = int.from_bytes(content[body : body + 4], "big") > 1
        position = end + 4
    else:
        raise BadContainerError(f"more than {MAX_PARTS} chunks")
    if not pixels:
        raise BadContainerError("no pixels", is_cut=position >= len(content))
    # One chunk: Pillow would walk through chunks of a few bytes in Python again. It does not check the CRC of pixels.
    size = sum(map(len, pixels))
    kept += [size.to_bytes(4, "big"), b"IDAT", *pixels, bytes(4), _PNG_END]
    return Container(b"".join(kept), orientation, is_animated=is_animated)


def _read_tiff(content: bytes) -> Container:
    image = full_image(content)
    return Container(image.content, image.orientation, image.pixels, samples=image.samples)


def _read_gif(content: bytes) -> Container:
    def palette(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    position = 13 + palette(content[10])
    kept = [content[:position]]
    for _ in range(MAX_PARTS):
        start, mark = position, content[position]
        if mark == 0x2C:  # the first image
            kept.append(content[position:])
            return Container(b"".join(kept))
        position += 1
        if mark == 0x21:
            position += 1
            while size := content[position]:
                position += size + 1
            position += 1
            if content[start + 1] == 0xF9:  # names the transparent colour
                kept.append(content[start:position])
    raise BadContainerError(f"more than {MAX_PARTS} blocks before the first image")


def _read_webp(content: bytes) -> Container:
    """Pillow allocates the canvas while it opens the file."""
    if int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise BadContainerError("truncated", is_cut=True)
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", content, 26))
    return Container(content, pixels=width * height)


# An entry of the table of contents that names EXIF. AVIF has boxes of its own for the orientation.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def _read_avif(content: bytes) -> Container:
    return Container(_AVIF_EXIF.sub(rb"\1none", content))


def _read_jpeg2000(content: bytes) -> Container:
    """Take the size from the codestream, as the decoder does; the one in the boxes around it may differ."""
    start = content.find(b"\xff\x4f\xff\x51", 0, MAX_CODESTREAM_OFFSET)
    if start < 0:
        raise BadContainerError("no pixels")
    right, lower, left, upper, width, height = struct.unpack_from(">6L", content, start + 8)
    tiles = -(-right // max(width, 1)) * -(-lower // max(height, 1))
    return Container(content, pixels=max(right - left, 0) * max(lower - upper, 0) + tiles * TILE_PIXELS)


_READERS = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "TIFF": _read_tiff,
    "AVIF": _read_avif,
    "JPEG2000": _read_jpeg2000,
}
