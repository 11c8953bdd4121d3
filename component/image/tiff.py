"""TIFF directories, which EXIF has too: the orientation, and the full image of a file without its metadata."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_ENTRIES = 4096  # of a directory; cameras write a hundred
MAX_DIRECTORIES = 100  # searched for the full image
MAX_TAG_VALUES = 2**17  # enough strips or tiles for any image within the limits

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


class Samples(NamedTuple):
    """How a file stores brightness in more than 8 bits, if not as unsigned integers from black to white.

    Attributes:
        bits: per sample; the largest integer of this many bits is white (MinIsWhite: black).
        is_float: floating point, from 0 to 1.
        is_inverted: 0 is white.
    """

    bits: int = 16
    is_float: bool = False
    is_inverted: bool = False


EIGHT_OR_SIXTEEN_BITS = Samples()


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
    except (ValueError, struct.error, IndexError, OverflowError):
        return 1


def _orientation(directory: _Directory) -> int:
    orientation = directory.number(_ORIENTATION)
    return orientation if 1 <= orientation <= 8 else 1


def _header(tiff: bytes) -> tuple[str, bool, int]:
    """Byte order for `struct`, whether it is a BigTIFF, and the offset of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise ValueError("no byte order")
    is_big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    return order, is_big, struct.unpack_from(order + ("8xQ" if is_big else "4xL"), tiff)[0]


def _directory(tiff: bytes, order: str, is_big: bool, start: int) -> _Directory:
    count, entry, pointer = (order + "Q", order + "HHQ8s", "Q") if is_big else (order + "H", order + "HHL4s", "L")
    number = struct.unpack_from(count, tiff, start)[0]
    if number > MAX_ENTRIES:
        raise ValueError(f"{number} entries in a directory")
    first = start + struct.calcsize(count)
    whole = min(number, (len(tiff) - first) // struct.calcsize(entry))
    end = first + whole * struct.calcsize(entry)
    entries = list(struct.iter_unpack(entry, tiff[first:end]))
    has_pointer = whole == number and end + struct.calcsize(order + pointer) <= len(tiff)
    following = struct.unpack_from(order + pointer, tiff, end)[0] if has_pointer else 0
    return _Directory(tiff, order, is_big, start, entries, following)


def _directories(tiff: bytes) -> Iterator[_Directory]:
    """The first directory, those that follow it, and those below it, where raw files of cameras have their image."""
    order, is_big, start = _header(tiff)
    first = directory = _directory(tiff, order, is_big, start)
    yield first
    for _ in range(MAX_DIRECTORIES):
        if not directory.following:
            break
        directory = _directory(tiff, order, is_big, directory.following)
        yield directory
    for start in first.numbers(_SUB_DIRECTORIES)[:MAX_DIRECTORIES]:
        yield _directory(tiff, order, is_big, start)


def _full_directory(tiff: bytes) -> _Directory:
    """The directory of the first image that is not a reduced version of another one."""
    reduced = []
    for directory in _directories(tiff):
        if not directory.is_reduced():
            return directory
        reduced.append(directory)
    if len(reduced) == 1:  # alone in its file, whatever it was reduced from
        return reduced[0]
    raise ValueError("all of its images are reduced versions of one that it does not hold")


class TiffImage(NamedTuple):
    """The full image of a TIFF.

    Attributes:
        content: the file with this image only and without metadata.
        orientation: as in EXIF, 1 to 8.
        pixels: of a tile; 0 without tiles.
    """

    content: bytes
    orientation: int
    pixels: int
    samples: Samples


def full_image(content: bytes) -> TiffImage:
    """The first image in a TIFF that is not a reduced version of another one.

    Raises:
        ValueError: there is none, or its structure is invalid.
        struct.error, OverflowError: the file is cut off.
    """
    directory = _full_directory(content)
    entry, number, pointer = ("HHQ8s", "Q", "Q") if directory.is_big else ("HHL4s", "H", "L")
    kept: dict[int, bytes] = {}
    room = len(content)
    for tag, kind, count, value in directory.entries:
        if tag in _PIXEL_TAGS and tag not in kept and kind in _TYPE_BYTES:
            size = count * _TYPE_BYTES[kind]
            room -= size if size > len(value) else 0
            if count > MAX_TAG_VALUES or room < 0:
                raise ValueError(f"tag {tag} has {count} values")
            kept[tag] = struct.pack(directory.order + entry, tag, kind, count, value)
    # At the same offset, with fewer entries, and without a following directory.
    written = struct.pack(directory.order + number, len(kept)) + b"".join(kept.values())
    written += bytes(width := struct.calcsize(directory.order + pointer))
    small = bytearray(content)
    small[directory.start : directory.start + len(written)] = written
    struct.pack_into(directory.order + pointer, small, width, directory.start)
    _widen_colour_map(directory, small)
    tile = directory.number(_TILE_WIDTH) * directory.number(_TILE_LENGTH)
    return TiffImage(bytes(small), _orientation(directory), tile, _samples(directory))


def _samples(directory: _Directory) -> Samples:
    sample_format = next(iter(directory.numbers(_SAMPLE_FORMAT)), _UNSIGNED)
    if sample_format not in (_UNSIGNED, _FLOAT, _UNDEFINED):
        raise ValueError("signed or complex samples, for which black and white are not defined")
    bits = next(iter(directory.numbers(_BITS)), 1)
    is_inverted = directory.number(_PHOTOMETRIC, default=1) == _MIN_IS_WHITE
    return Samples(bits, sample_format == _FLOAT, is_inverted)


def _widen_colour_map(directory: _Directory, tiff: bytearray) -> None:
    """Repair a palette that holds 8-bit values although TIFF's have 16, as libtiff does."""
    is_palette = directory.number(_PHOTOMETRIC, default=1) == _PALETTE
    has_shorts = any(tag == _COLOUR_MAP and kind == _SHORT for tag, kind, _, _ in directory.entries)
    colours = directory.numbers(_COLOUR_MAP) if is_palette and has_shorts else ()
    if len(colours) > 4 and max(colours) < 256:  # more than fit into the entry itself
        wide = [257 * colour for colour in colours]
        struct.pack_into(f"{directory.order}{len(wide)}H", tiff, directory.offset(_COLOUR_MAP), *wide)
