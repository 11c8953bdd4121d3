"""An image file reduced to its pixels, so that no comment, profile or EXIF tag decides what a decoder does.

Pillow reads metadata before pixels: one odd tag makes it fail, and a megabyte of tags that all point at the same bytes
becomes gigabytes. Kept here is what the pixels depend on, and from EXIF only the orientation.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 100_000  # segments, chunks or blocks of a file
FEW_SCANS = 20  # of a JPEG: so few are counted roughly
MAX_ENTRIES = 4096  # of a TIFF directory; cameras write a hundred
MAX_DIRECTORIES = 100  # of a TIFF, searched for the full image
MAX_TAG_VALUES = 2**17  # of a TIFF tag: enough strips or tiles for any image within the limits
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


class Samples(NamedTuple):
    """How a file stores brightness in more than 8 bits, if not as unsigned integers from black to white.

    Attributes:
        bits: per sample; the largest integer of so many bits is white (MinIsWhite: black).
        is_float: floating point, from 0 to 1.
        is_inverted: 0 is white.
    """

    bits: int = 16
    is_float: bool = False
    is_inverted: bool = False


EIGHT_OR_SIXTEEN_BITS = Samples()


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
    except (struct.error, IndexError, OverflowError):
        raise BadContainerError("truncated in its header", is_cut=True) from None


# ---- EXIF and TIFF ----

_SHORT, _LONG = 3, 4
_TYPE_BYTES = {1: 1, 2: 1, _SHORT: 2, _LONG: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_NUMBERS = {_SHORT: "H", _LONG: "L", 13: "L", 16: "Q"}  # types of tags that hold unsigned integers → struct format
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_DIRECTORIES = 254, 255, 330
_BITS, _PHOTOMETRIC, _COLOUR_MAP, _SAMPLE_FORMAT = 258, 262, 320, 339
_TILE_WIDTH, _TILE_LENGTH, _ORIENTATION = 322, 323, 274
_MIN_IS_WHITE, _PALETTE = 0, 3  # photometric interpretations
_UNSIGNED, _FLOAT, _UNDEFINED = 1, 3, 4  # sample formats
# Size, bits, compression, colours, strips, tiles, palette, alpha, JPEG tables, YCbCr, LERC.
_PIXEL_TAGS = {
    *(256, 257, _BITS, 259, _PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, _COLOUR_MAP),
    *(_TILE_WIDTH, _TILE_LENGTH, 324, 325, 332, 338, _SAMPLE_FORMAT, 347),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 50674),
}


class _Directory(NamedTuple):
    """A directory of a TIFF.

    Attributes:
        tiff: the file.
        start: offset of the directory.
        entries: (tag, type, number of values, value or its offset).
        following: offset of the next directory; 0 after the last.
    """

    tiff: bytes
    order: str
    is_big: bool
    start: int
    entries: list[tuple[int, int, int, bytes]]
    following: int

    def offset(self, wanted: int) -> int:
        """Offset of the values of a tag that does not fit into its entry."""
        value = next(value for tag, _, _, value in self.entries if tag == wanted)
        return struct.unpack_from(self.order + ("Q" if self.is_big else "L"), value)[0]

    def numbers(self, wanted: int) -> tuple[int, ...]:
        """The values of a tag that holds unsigned integers; () for any other."""
        for tag, kind, count, value in self.entries:
            if tag == wanted and kind in _NUMBERS and count <= MAX_TAG_VALUES:
                is_inside = count * _TYPE_BYTES[kind] <= len(value)
                where = (value, 0) if is_inside else (self.tiff, self.offset(tag))
                return struct.unpack_from(f"{self.order}{count}{_NUMBERS[kind]}", *where)
        return ()

    def number(self, wanted: int, default: int = 0) -> int:
        """The value of a tag that holds exactly one unsigned integer."""
        numbers = self.numbers(wanted)
        return numbers[0] if len(numbers) == 1 else default

    def is_reduced(self) -> bool:
        """Whether this is a thumbnail of another image in the file, or its transparency mask."""
        return bool(self.number(_NEW_SUBFILE_TYPE) & 5) or self.number(_SUBFILE_TYPE) == 2


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 1 if there is none, or an invalid one."""
    try:
        tiff = exif.removeprefix(b"Exif\0\0")
        return _orientation(_directory(tiff, *_header(tiff)))
    except (BadContainerError, struct.error, IndexError, OverflowError):
        return 1


def _orientation(directory: _Directory) -> int:
    orientation = directory.number(_ORIENTATION)
    return orientation if 1 <= orientation <= 8 else 1


def _header(tiff: bytes) -> tuple[str, bool, int]:
    """Byte order for `struct`, whether it is a BigTIFF, and the offset of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise BadContainerError("no byte order")
    is_big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    return order, is_big, struct.unpack_from(order + ("8xQ" if is_big else "4xL"), tiff)[0]


def _directory(tiff: bytes, order: str, is_big: bool, start: int) -> _Directory:
    count, entry, pointer = (order + "Q", order + "HHQ8s", "Q") if is_big else (order + "H", order + "HHL4s", "L")
    number = struct.unpack_from(count, tiff, start)[0]
    if number > MAX_ENTRIES:
        raise BadContainerError(f"{number} entries in a directory")
    first = start + struct.calcsize(count)
    whole = min(number, (len(tiff) - first) // struct.calcsize(entry))
    end = first + whole * struct.calcsize(entry)
    entries = list(struct.iter_unpack(entry, tiff[first:end]))
    has_pointer = whole == number and end + struct.calcsize(order + pointer) <= len(tiff)
    following = struct.unpack_from(order + pointer, tiff, end)[0] if has_pointer else 0
    return _Directory(tiff, order, is_big, start, entries, following)


def _full_image(tiff: bytes) -> _Directory:
    """The directory of the first image that is not a reduced version of another one."""

    def others() -> Iterator[int]:
        directory = first
        for _ in range(MAX_DIRECTORIES):
            if not directory.following:
                break
            yield directory.following
            directory = _directory(tiff, *first[1:3], directory.following)
        yield from first.numbers(_SUB_DIRECTORIES)[:MAX_DIRECTORIES]  # where raw files of cameras have it

    order, is_big, start = _header(tiff)
    first = directory = _directory(tiff, order, is_big, start)
    if not first.is_reduced():
        return first
    for start in others():
        directory = _directory(tiff, order, is_big, start)
        if not directory.is_reduced():
            return directory
    if directory is first:  # alone in its file, whatever it was reduced from
        return first
    raise BadContainerError("all of its images are reduced versions of one that it does not hold")


def _read_tiff(content: bytes) -> Container:
    directory = _full_image(content)
    entry, number, pointer = ("HHQ8s", "Q", "Q") if directory.is_big else ("HHL4s", "H", "L")
    kept: dict[int, bytes] = {}
    room = len(content)
    for tag, kind, count, value in directory.entries:
        if tag in _PIXEL_TAGS and tag not in kept and kind in _TYPE_BYTES:
            size = count * _TYPE_BYTES[kind]
            room -= size if size > len(value) else 0
            if count > MAX_TAG_VALUES or room < 0:
                raise BadContainerError(f"tag {tag} has {count} values")
            kept[tag] = struct.pack(directory.order + entry, tag, kind, count, value)
    # At the same offset, with fewer entries, and without a following directory.
    written = struct.pack(directory.order + number, len(kept)) + b"".join(kept.values())
    written += bytes(width := struct.calcsize(directory.order + pointer))
    small = bytearray(content)
    small[directory.start : directory.start + len(written)] = written
    struct.pack_into(directory.order + pointer, small, width, directory.start)
    _widen_colour_map(directory, small)
    tile = directory.number(_TILE_WIDTH) * directory.number(_TILE_LENGTH)
    return Container(bytes(small), _orientation(directory), tile, samples=_samples(directory))


def _samples(directory: _Directory) -> Samples:
    sample_format = next(iter(directory.numbers(_SAMPLE_FORMAT)), _UNSIGNED)
    if sample_format not in (_UNSIGNED, _FLOAT, _UNDEFINED):
        raise BadContainerError("signed or complex samples, for which black and white are not defined")
    bits = next(iter(directory.numbers(_BITS)), 1)
    is_inverted = directory.number(_PHOTOMETRIC, default=1) == _MIN_IS_WHITE
    return Samples(bits, sample_format == _FLOAT, is_inverted)


def _widen_colour_map(directory: _Directory, tiff: bytearray) -> None:
    """Repair a palette that holds 8-bit values although TIFF's have 16, as libtiff does."""
    if directory.number(_PHOTOMETRIC, default=1) != _PALETTE:
        return
    colours = directory.numbers(_COLOUR_MAP)
    if len(colours) > 2 and max(colours) < 256:
        wide = [257 * colour for colour in colours]
        struct.pack_into(f"{directory.order}{len(wide)}H", tiff, directory.offset(_COLOUR_MAP), *wide)


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
    # One chunk: Pillow would walk through chunks of a few bytes in Python again. It does not check the CRC of pixels.
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
