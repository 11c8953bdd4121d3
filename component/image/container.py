"""An image file without what is not pixels, so that no comment, profile or EXIF tag decides what a decoder does.

Pillow reads metadata before pixels, and an odd tag ends its reading; a megabyte of tags that all point at the same
bytes becomes gigabytes. What is kept here is what the pixels depend on, and of EXIF the orientation alone.
"""

import re
import struct
from typing import NamedTuple

MAX_PARTS = 100_000  # segments, chunks or blocks of a file
FEW_SCANS = 20  # of a JPEG: nobody minds if some of them are none
MAX_ENTRIES = 4096  # of a TIFF directory; cameras write a hundred
MAX_TAG_VALUES = 2**17  # of a TIFF tag: the strips or tiles of any image that is small enough
TILE_PIXELS = 400  # as many as the tables of one tile of a JPEG 2000 take room for
MAX_CODESTREAM_OFFSET = 2**20  # bytes of boxes before the pixels of a JPEG 2000

# Format → how its files begin. Left out on purpose: EPS, which Pillow hands to Ghostscript, a program that runs what
# it reads; formats that Pillow decodes in Python, pixel by pixel (PPM, TGA, …); and icons, which hide other formats.
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
    """The parts of a file do not fit together; `is_cut` when its end is missing."""

    def __init__(self, message: str, is_cut: bool = False):
        super().__init__(message)
        self.is_cut = is_cut


class Container(NamedTuple):
    """What a decoder is to see of a file, and what it cannot tell before it makes room for pixels.

    Attributes:
        content: the file without metadata.
        orientation: as in EXIF, 1 to 8; 0 where Pillow is to tell it.
        pixels: room that the decoder makes at least.
        scans: how often the decoder goes over all pixels.
        is_animated: the file holds further images than the first, and Pillow is not told.
    """

    content: bytes
    orientation: int = 0
    pixels: int = 0
    scans: int = 1
    is_animated: bool = False


def format_of(content: bytes) -> str | None:
    """One of FORMATS by the first bytes; None for anything else."""
    match = _ANY_MAGIC.match(content[:256])
    return match.lastgroup if match else None


def read_container(format: str, content: bytes) -> Container:
    """Take a file of one of FORMATS apart. Raises BadContainerError."""
    try:
        return _READERS.get(format, Container)(content)
    except (struct.error, IndexError, OverflowError):
        raise BadContainerError("truncated in its header", is_cut=True) from None


# ---- EXIF and TIFF ----

_ORIENTATION = 274
_SHORT, _LONG = 3, 4
_TYPE_BYTES = {1: 1, 2: 1, _SHORT: 2, _LONG: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# Size, bits, compression, colours, strips, tiles, palette, alpha, JPEG tables, YCbCr, LERC.
_PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_LENGTH, 324, 325, 332, 338, 339, 347),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 50674),
}


class _Directory(NamedTuple):
    """The first directory of a TIFF: its place, and its entries (tag, type, number of values, value or its place)."""

    order: str
    start: int
    is_big: bool
    entries: list[tuple[int, int, int, bytes]]

    def number(self, wanted: int) -> int:
        """The value of a tag that is one SHORT or LONG; 0 for any other."""
        for tag, kind, count, value in self.entries:
            if tag == wanted:
                form = {_SHORT: "H", _LONG: "L"}.get(kind) if count == 1 else None
                return struct.unpack_from(self.order + form, value)[0] if form else 0
        return 0


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block tells, 1 to 8; 1 where it tells none, or nonsense."""
    try:
        return _orientation(_directory(exif.removeprefix(b"Exif\0\0")))
    except (BadContainerError, struct.error, IndexError, OverflowError):
        return 1


def _orientation(directory: _Directory) -> int:
    orientation = directory.number(_ORIENTATION)
    return orientation if 1 <= orientation <= 8 else 1


def _directory(tiff: bytes) -> _Directory:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise BadContainerError("no byte order")
    is_big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    start = struct.unpack_from(order + ("8xQ" if is_big else "4xL"), tiff)[0]
    count, form = (order + "Q", order + "HHQ8s") if is_big else (order + "H", order + "HHL4s")
    number = struct.unpack_from(count, tiff, start)[0]
    if number > MAX_ENTRIES:
        raise BadContainerError(f"{number} entries in a directory")
    first = start + struct.calcsize(count)
    whole = (len(tiff) - first) // struct.calcsize(form)
    entries = tiff[first : first + min(number, whole) * struct.calcsize(form)]
    return _Directory(order, start, is_big, list(struct.iter_unpack(form, entries)))


def _read_tiff(content: bytes) -> Container:
    directory = _directory(content)
    entry, number = ("HHQ8s", "Q") if directory.is_big else ("HHL4s", "H")
    kept: dict[int, bytes] = {}
    room = len(content)
    for tag, kind, count, value in directory.entries:
        if tag in _PIXEL_TAGS and tag not in kept and kind in _TYPE_BYTES:
            size = count * _TYPE_BYTES[kind]
            room -= size if size > len(value) else 0
            if count > MAX_TAG_VALUES or room < 0:
                raise BadContainerError(f"tag {tag} has {count} values")
            kept[tag] = struct.pack(directory.order + entry, tag, kind, count, value)
    # In the same place, with fewer entries, and without a further directory.
    written = struct.pack(directory.order + number, len(kept)) + b"".join(kept.values())
    written += bytes(struct.calcsize(number) if directory.is_big else 4)
    view = memoryview(content)
    content = b"".join([view[: directory.start], written, view[directory.start + len(written) :]])
    tile = directory.number(_TILE_WIDTH) * directory.number(_TILE_LENGTH)
    return Container(content, _orientation(directory), tile)


# ---- JPEG ----

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_WITHOUT_BODY = {0x00, 0x01, *range(0xD0, _EOI)}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_HOW_COLOURS_ARE_STORED = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
# Among coded pixels 0xFF 0x00 stands for 0xFF, and restart markers may stand anywhere.
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
            # A baseline decoder stops after a scan of all components; any other goes from scan to scan.
            goes_on = is_progressive or content[body] < components
            return Container(b"".join(kept), orientation, scans=_count_scans(content, position) if goes_on else 1)
        if marker in _FRAMES:
            is_progressive, components = marker in _PROGRESSIVE, content[body + 5]
        if marker == _APP1 and not orientation and content.startswith(b"Exif\0\0", body):
            orientation = exif_orientation(content[body:end])
        if marker not in _METADATA or content.startswith(_HOW_COLOURS_ARE_STORED.get(marker, b"\xff\xff"), body):
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


# ---- PNG, GIF and the others ----

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
    # Chunks of a few bytes each would be walked in Python once more. Nobody asks for the sum of this one.
    size = sum(map(len, pixels))
    kept += [size.to_bytes(4, "big"), b"IDAT", *pixels, bytes(4), _PNG_END]
    return Container(b"".join(kept), orientation, is_animated=is_animated)


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
            if content[start + 1] == 0xF9:  # which colour is transparent
                kept.append(content[start:position])
    raise BadContainerError(f"more than {MAX_PARTS} blocks before the first image")


def _read_webp(content: bytes) -> Container:
    """Pillow makes room for the canvas while it opens the file."""
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


# An entry of the table of contents that names EXIF. AVIF turns images by boxes of its own.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def _read_avif(content: bytes) -> Container:
    return Container(_AVIF_EXIF.sub(rb"\1none", content))


def _read_jpeg2000(content: bytes) -> Container:
    """The size that the decoder goes by may differ from the one in the boxes around it."""
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
