"""Decoding an image file: what is refused, what it may cost, and that training, filter and download agree."""

import errno
import gc
import io
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from image_server import image_bytes
from PIL import Image

from component.embedding import open_image
from component.image.check import check_image, shrink_image
from component.image.fast_jpeg import packages
from component.image.folder import image_files
from component.image.load import MAX_ASPECT, MAX_SCANS, decode, load_image
from component.image.perceptual_hash import HASH_SIDE, perceptual_hash
from component.image.reading import BadImageError, read_bytes
from component.image.rgb import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000")
WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def verdict(reader, content: bytes) -> str:
    """The reason for which `reader` refuses a file; "" if it does not."""
    try:
        reader(content)
    except BadImageError as error:
        return error.reason
    return ""


def corners() -> Image.Image:
    """32 x 16 pixels, red in the upper left quarter."""
    image = Image.new("RGB", (32, 16), "blue")
    image.paste("red", (0, 0, 16, 8))
    return image


def is_upright(image: Image.Image, orientation: int) -> bool:
    """Whether the red corner is where this orientation puts it; in a grey image it is the bright one."""
    x, y = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    width, height = image.size
    grey = image.convert("L")
    there = grey.getpixel((width // 8 + x * width * 3 // 4, height // 8 + y * height * 3 // 4))
    opposite = grey.getpixel((width // 8 + (1 - x) * width * 3 // 4, height // 8 + (1 - y) * height * 3 // 4))
    return (width > height) == (orientation < 5) and there > opposite + 20


# ---- EXIF ----


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", extra: bytes = b"") -> bytes:
    """A TIFF block of raw entries (tag, type, count, value or its offset)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HLH", 42, 8, len(entries))
    return head + b"".join(struct.pack(order + "HHL4s", *entry) for entry in entries) + bytes(4) + extra


def orientation_entry(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(order + "H", value)


def with_exif(kind: str, block: bytes) -> bytes:
    """`corners()` with these bytes as EXIF, valid or not."""
    content = encoded(corners(), kind)
    if kind == "JPEG":
        body = b"Exif\0\0" + block
        return content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    if kind == "PNG":
        chunk = struct.pack(">L", len(block)) + b"eXIf" + block + struct.pack(">L", zlib.crc32(b"eXIf" + block))
        return content[:33] + chunk + content[33:]
    return encoded(corners(), kind, exif=block)


def seen_by_each_reader(content: bytes) -> list[bool]:
    """The image as `load_image`, a draft of training, the filter and the download see it."""
    small = io.BytesIO()
    shrink_image(content, small, 400)
    return [
        load_image(content),
        decode(content, 8).rgb,
        check_image(content, 8).rgb,
        Image.open(small),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_reader_applies_the_orientation_whatever_the_other_tags_are(kind, orientation):
    for seed, order in enumerate("<><>"):
        dice = random.Random(seed)
        odd = [
            (dice.choice([271, 282, 0x8769, 0x8825, 40_000]), dice.randrange(20), dice.choice([0, 1, 4, 2**32 - 1]), b)
            for b in (dice.randbytes(4) for _ in range(6))
        ]
        content = with_exif(kind, exif(*odd[:3], orientation_entry(orientation, order), *odd[3:], order=order))
        assert all(is_upright(image, orientation) for image in seen_by_each_reader(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_every_reader_turns_a_tiff_once(compression, orientation):
    content = encoded(corners(), "TIFF", compression=compression, tiffinfo={0x0112: orientation})
    assert all(is_upright(image, orientation) for image in seen_by_each_reader(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        exif((0x0112, 2, 2, b"6\0\0\0")),  # text
        exif((0x0112, 7, 4, b"\6\0\0\0")),  # bytes
        exif((0x0112, 5, 1, struct.pack("<L", 26)), extra=struct.pack("<LL", 6, 1)),  # a fraction
        exif((0x0112, 3, 2**31, b"\6\0\0\0")),
        exif((0x0112, 3, 1, b"\xff\xff\0\0")),
        exif((0x0112, 4, 1, b"\xff\xff\xff\xff")),
        exif(orientation_entry(6))[:12],
        b"II*\0\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 40,
        b"",
        b"no TIFF at all",
    ],
)
def test_an_invalid_orientation_is_ignored(kind, block):
    assert all(is_upright(image, 1) for image in seen_by_each_reader(with_exif(kind, block)))


def test_exif_in_an_avif_is_not_read():
    block = exif(*[(271, 2, 4, b"abc\0")] * 4, extra=bytes(20))
    content = encoded(corners(), "AVIF", exif=block)
    assert block in content
    for odd in (b"\xff" * len(block), block[:8] + b"\xff" * (len(block) - 8), block[:10] + block[:-10]):
        assert all(is_upright(image, 1) for image in seen_by_each_reader(content.replace(block, odd)))


def test_random_bytes_as_exif_change_nothing():
    dice = random.Random(7)
    for kind in ("JPEG", "PNG", "WEBP"):
        plain = load_image(encoded(corners(), kind))
        for _ in range(60):
            block = bytearray(exif(*[orientation_entry(1)] * 4, extra=bytes(20)))
            for _ in range(dice.randrange(1, 12)):
                block[dice.randrange(4, len(block))] = dice.choice([0, 1, 2, 5, 7, 13, 255])
            image = load_image(with_exif(kind, bytes(block)))
            assert sorted(image.size) == sorted(plain.size)
            assert sorted(image.getcolors()) == sorted(plain.getcolors())


# ---- one verdict ----


@pytest.mark.parametrize("kind", FORMATS)
def test_every_reader_gives_the_same_verdict_on_a_damaged_file_and_raises_nothing_else(kind):
    dice = random.Random(3)
    whole = encoded(Image.open(io.BytesIO(image_bytes(1, (48, 40)))), kind)
    readers = [load_image, check_image, lambda file: decode(file, 8)]
    readers.append(lambda file: shrink_image(file, io.BytesIO(), 16))
    for number in range(120):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            # damage in headers has more effect than in pixels
            damaged[dice.randrange(len(whole) if number % 2 else min(len(whole), 200))] = dice.randrange(256)
        del damaged[dice.choice([len(whole), len(whole), dice.randrange(len(whole))]) :]
        first, *others = (verdict(reader, bytes(damaged)) for reader in readers)
        assert others == [first] * 3


def test_every_reader_gives_the_same_verdict_on_a_lossless_jpeg():
    """SOF3, which libjpeg decodes only at full size and in its own colours; here 16 x 8 pixels of grey 128."""
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, 8, 16, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB16sB", 20, 0, bytes([1] + [0] * 15), 0)  # one code: no difference
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    content = b"\xff\xd8" + frame + table + scan + bytes(16) + b"\xff\xd9"
    readers = load_image, check_image, lambda file: decode(file, 1), lambda file: shrink_image(file, io.BytesIO(), 4)
    verdicts = {verdict(reader, content) for reader in readers}
    assert len(verdicts) == 1
    if verdicts == {""}:  # libjpeg-turbo 3 decodes it
        assert load_image(content).getpixel((3, 3)) == (128, 128, 128)


def test_a_damaged_tiff_writes_nothing_to_the_terminal(capfd):
    content = io.BytesIO()
    Image.new("1", (40, 40)).save(content, "TIFF", compression="group4")
    for place in range(8, len(content.getvalue()) - 4, 8):
        damaged = bytearray(content.getvalue())
        damaged[place : place + 4] = b"\xff\x0f\xf0\x55"
        with suppress(BadImageError):
            load_image(bytes(damaged))
    assert capfd.readouterr() == ("", "")


def test_noise_after_every_magic_number_gives_a_verdict():
    dice = random.Random(4)
    starts = [encoded(corners(), kind)[:24] for kind in (*FORMATS, "GIF", "PPM", "ICO", "TGA", "PCX", "EPS")]
    for start in starts:
        for length in (0, 8, 100, 3000):
            content = start + dice.randbytes(length)
            assert verdict(load_image, content) == verdict(check_image, content) != ""


RLE_BMP = b"BM" + struct.pack("<LHHLLllHHLLLLLL", 1090, 0, 0, 1078, 40, 8, 8, 1, 8, 1, 12, 0, 0, 256, 0) + bytes(1036)


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "no_plugin", "pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "no_plugin", "pillow-jxl-plugin"),
        (encoded(corners(), "PPM"), "other_format", "PPM"),
        (encoded(corners(), "ICO"), "other_format", "ICO"),
        (encoded(corners(), "EPS"), "other_format", "EPS"),
        (encoded(Image.new("LAB", (9, 9)), "TIFF"), "undecodable", "LAB"),
        (RLE_BMP, "undecodable", "bmp_rle"),
        (encoded(corners(), "JPEG").replace(b"\x08\0\x10\0\x20\x03", b"\x0c\0\x10\0\x20\x03"), "undecodable", "JPEG"),
    ],
)
def test_formats_that_only_other_programs_show_are_refused_by_name(content, reason, message):
    with pytest.raises(BadImageError, match=message) as caught:
        check_image(content)
    assert caught.value.reason == reason == verdict(load_image, content)


# ---- the kinds of TIFF ----

RAMP = np.tile(np.linspace(0, 1, 16), (8, 1))  # from black at the left to white at the right


def tiff(pixels: np.ndarray | bytes, tags: dict[int, int | list[int]], order: str = "<", after: bytes = b"") -> bytes:
    """An uncompressed TIFF of 16 x 8 pixels; `tags` override those of 8-bit grey; `after`: a TIFF of further pages."""
    pixels = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    tags = {256: 16, 257: 8, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: len(pixels)} | tags
    start = 8 + len(pixels)
    extra, entries = b"", b""
    if isinstance(tags[279], list):  # strips of equal length
        tags[273] = list(range(8, start, len(pixels) // len(tags[279])))
    else:
        tags[273] = 8
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        kind, form = (3, "H") if tag in (258, 320) else (4, "L")
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > 4:
            extra += packed
            packed = struct.pack(order + "L", start + 6 + 12 * len(tags) + len(extra) - len(packed))
        entries += struct.pack(order + "HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    size = start + 6 + len(entries) + len(extra)
    following = b""
    if after:
        offset, count = struct.unpack_from("<L", after, 4)[0], struct.unpack_from("<H", after, 8 + 16 * 8)[0]
        following = after[:offset]
        page = [list(entry) for entry in struct.iter_unpack("<HHLL", after[offset + 2 :][: 12 * count])]
        for entry in page:
            entry[3] += size if entry[0] == 273 else 0
        following += struct.pack("<H", count) + b"".join(struct.pack("<HHLL", *entry) for entry in page) + bytes(4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, start)
    link = struct.pack(order + "L", size + 8 + 16 * 8 if after else 0)
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + link + extra + following


def twelve_bits() -> bytes:
    values = (RAMP * 4095).round().astype(int).ravel().reshape(-1, 2)
    return b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in values.tolist())


def grey(kind: str, white: float) -> np.ndarray:
    return (RAMP * white if kind[1] == "f" else (RAMP * white).round()).astype(kind)


PALETTE = {258: 8, 262: 3}
INDICES = np.tile(np.arange(16, dtype=np.uint8), (8, 1))
COLOURS = [round(colour * 255) for colour in np.linspace(0, 1, 16)] + [0] * 240
RGB = {258: [8, 8, 8], 262: 2, 277: 3}


@pytest.mark.parametrize(
    "content",
    [
        tiff(grey("<u1", 255), {}),
        tiff(255 - grey("<u1", 255), {262: 0}),
        tiff(grey("<u2", 65535), {258: 16}),
        tiff(grey(">u2", 65535), {258: 16}, ">"),
        tiff(65535 - grey("<u2", 65535), {258: 16, 262: 0}),
        tiff(twelve_bits(), {258: 12}),
        tiff(grey("<u4", 2**32 - 1), {258: 32}),
        tiff(grey("<f4", 1), {258: 32, 339: 3}),
        tiff(grey(">f4", 1), {258: 32, 339: 3}, ">"),
        tiff(1 - grey("<f4", 1), {258: 32, 262: 0, 339: 3}),
        tiff(np.stack([grey("<u1", 255)] * 3, axis=-1), RGB),
        tiff(np.stack([grey("<u1", 255)] * 3), {**RGB, 279: [128] * 3, 284: 2}),
        tiff(np.stack([grey("<u2", 65535)] * 3, axis=-1), {**RGB, 258: [16, 16, 16]}),
        tiff(np.stack([grey(">u2", 65535)] * 3, axis=-1), {**RGB, 258: [16, 16, 16]}, ">"),
        tiff(INDICES, {**PALETTE, 320: [257 * colour for colour in COLOURS] * 3}),
        tiff(INDICES, {**PALETTE, 320: COLOURS * 3}),
        tiff(INDICES, {254: 1}, after=tiff(grey("<u1", 255), {254: 0})),
    ],
)
def test_a_tiff_of_any_depth_is_read_from_black_to_white_or_refused(content):
    for reader in (load_image, lambda file: check_image(file).rgb):
        seen = np.asarray(reader(content)).astype(int)
        assert np.abs(seen - (RAMP * 255)[..., None]).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        tiff(grey("<f4", 255), {258: 32, 339: 3}),
        tiff(grey("<f4", 1) - 0.5, {258: 32, 339: 3}),
        tiff(grey("<f4", np.nan), {258: 32, 339: 3}),
        tiff(grey("<f2", 1), {258: 16, 339: 3}),
        tiff(grey("<i1", 127), {339: 2}),
        tiff(grey("<i2", 32767), {258: 16, 339: 2}),
        tiff(grey("<i4", 2**31 - 1), {258: 32, 339: 2}),
        tiff(grey(">u4", 2**32 - 1), {258: 32}, ">"),
        tiff(grey("<u4", 2**32 - 1), {258: 32, 262: 0}),
        tiff(INDICES.astype("<u2"), {258: 16, 262: 3, 320: COLOURS * 3}),
        tiff(INDICES, {254: 1}, after=tiff(INDICES, {254: 1})),
    ],
)
def test_a_tiff_that_cannot_be_read_right_is_refused_by_name(content):
    assert verdict(load_image, content) == verdict(check_image, content) == "undecodable"


@pytest.mark.parametrize("alpha", [1, 2])  # with and without colours multiplied by it
def test_transparency_in_a_tiff_becomes_white(alpha):
    content = tiff(bytes(16 * 8 * 4), {258: [8] * 4, 262: 2, 277: 4, 338: alpha})
    assert load_image(content).getpixel((4, 4)) == (255, 255, 255)


# ---- names ----


def test_every_name_of_a_format_that_is_read_is_the_name_of_an_image(tmp_path, caplog):
    endings = [ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "GIF", "MPO")]
    for ending in endings:
        (tmp_path / f"a{ending.upper()}").write_bytes(encoded(corners(), "JPEG"))
    assert image_files([str(tmp_path)]) == sorted(str(tmp_path / f"a{ending.upper()}") for ending in endings)
    assert {".avif", ".jp2", ".jpe", ".jfif", ".apng"} <= {*endings} and not caplog.messages


def test_files_that_are_passed_over_are_counted_and_the_first_is_named(tmp_path, caplog):
    for name in ("a.jpg", "b.heic", "c.HEIC", "d.mp4", "e", "captions.txt", ".DS_Store"):
        (tmp_path / name).touch()
    assert image_files([str(tmp_path)]) == [str(tmp_path / "a.jpg")]
    (message,) = caplog.messages
    assert message.startswith("4 files do not have the name of an image and are skipped: 2 .heic, ")
    assert message.endswith(f"(the first: {tmp_path}/b.heic).")


# ---- how an image is shown ----


def png_with(*chunks: tuple[bytes, bytes], good_crc: bool = True) -> bytes:
    content = encoded(corners(), "PNG")
    crc = [zlib.crc32(kind + body) ^ (not good_crc) for kind, body in chunks]
    extra = [
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", crc)
        for (kind, body), crc in zip(chunks, crc, strict=True)
    ]
    return content[:33] + b"".join(extra) + content[33:]


TEXT = b"key\0\0" + zlib.compress(bytes(3 * 2**20))
PROFILE = b"icc\0\0" + zlib.compress(bytes(3 * 2**20))


@pytest.mark.parametrize(
    "content",
    [
        png_with((b"zTXt", TEXT)),
        png_with(*[(b"zTXt", TEXT)] * 90),
        png_with((b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(3 * 2**20)))),
        png_with((b"iCCP", PROFILE)),
        png_with((b"pHYs", b"nonsense")),
        png_with((b"tEXt", b"a\0b"), good_crc=False),
        png_with((b"gAMA", b"\0\0\1\1"), good_crc=False),
        encoded(corners(), "JPEG", icc_profile=bytes(200_000)),
        encoded(corners(), "JPEG", comment=b"x" * 60_000),
    ],
)
def test_no_metadata_prevents_an_image_from_being_decoded(content):
    assert is_upright(load_image(content), 1)
    assert is_upright(check_image(content, 8).rgb, 1)


def test_a_bmp_whose_alpha_is_all_zero_is_opaque():
    for alpha, seen in ((0, (200, 30, 10)), (255, (200, 30, 10)), (127, (228, 144, 133))):
        content = bytearray(encoded(Image.new("RGBA", (8, 8), (200, 30, 10, alpha)), "BMP"))
        # V4 header with a mask for alpha; Pillow writes the one without
        header = struct.pack(
            "<LllHHLLllLL4L", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000
        )
        content = b"BM" + struct.pack("<LHHL", 122 + 256, 0, 0, 122) + header + bytes(52)
        content += bytes((10, 30, 200, alpha)) * 64
        pixel = load_image(content).getpixel((4, 4))
        assert all(abs(a - b) <= 1 for a, b in zip(pixel, seen, strict=True))


def test_images_that_look_alike_have_close_hashes():
    photo = Image.open(io.BytesIO(image_bytes(1, (300, 200))))
    on_white = photo.convert("RGBA")
    on_white.putalpha(255)
    hidden = Image.new("RGBA", photo.size, (0, 0, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    looks = [
        perceptual_hash(check_image(content, HASH_SIDE).rgb)
        for content in (
            encoded(photo, "PNG"),
            encoded(on_white, "PNG"),
            encoded(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned, quality=95),
            encoded(grey16, "PNG"),
            encoded(hidden, "PNG"),
            encoded(Image.new("RGB", (300, 200), "white"), "PNG"),
        )
    ]
    assert all((looks[0] ^ other).bit_count() <= 3 for other in looks[1:4])
    assert looks[4] == looks[5]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P"])
def test_converting_a_large_image_in_strips_equals_converting_it_at_once(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (1060, 1000, 4), np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode == "P" else "RGBA").convert(mode.replace("I;16", "L"))
    if mode == "I;16":
        image = Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    content = encoded(image, "PNG", **({"transparency": 5} if mode == "P" else {}))
    whole = np.asarray(load_image(content))
    for box in ((0, 0, 1000, 300), (0, 1000, 1000, 1060)):
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            assert np.array_equal(whole[box[1] : box[3]], np.asarray(to_rgb(opened.crop(box))))


# ---- what an image may cost ----


def scans_of(content: bytes, number: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * number + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused():
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    progressive = encoded(noise, "JPEG", progressive=True)
    assert verdict(load_image, progressive) == verdict(load_image, scans_of(progressive, MAX_SCANS - 15)) == ""
    assert verdict(load_image, scans_of(progressive, 8000)) == "too_many_scans"
    assert verdict(check_image, scans_of(progressive, 8000)) == "too_many_scans"
    large = encoded(Image.new("L", (9_000, 9_000)), "JPEG", progressive=True)
    assert verdict(load_image, scans_of(large, 30)) == "too_many_scans"
    # markers within a comment after the first scan, or after the end of the image, are not scans
    first = progressive.index(b"\xff\xda")
    second = progressive.index(b"\xff\xc4", first)
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    assert verdict(load_image, progressive[:second] + comment + progressive[second:] + b"\xff\xda" * 500) == ""


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000), (3, 3 * MAX_ASPECT + 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_every_reader_refuses_an_image_that_is_long_and_narrow(kind, size):
    content = encoded(Image.new("RGB", size), kind)
    readers = load_image, check_image, lambda file: shrink_image(file, io.BytesIO(), 224)
    assert {verdict(reader, content) for reader in readers} == {"long_and_narrow"}
    with pytest.raises(BadImageError, match="long_and_narrow"):
        open_image(Image.new("RGB", size))


def test_the_longest_image_allowed_is_read_and_shrunk_to_what_a_jpeg_can_hold():
    content = encoded(Image.new("L", (2 * MAX_ASPECT, 2)), "PNG")
    assert load_image(content).size == (400, 2)
    wide = encoded(Image.new("1", (66_000, 400)), "PNG")
    assert verdict(lambda file: shrink_image(file, io.BytesIO(), 400), wide) == "long_and_narrow"
    small = io.BytesIO()
    shrink_image(wide, small, 300)
    assert Image.open(small).size == (49_500, 300)


# ---- with and without simplejpeg and OpenCV ----


def shrunk(content: bytes, side: int) -> bytes:
    shrink_image(content, out := io.BytesIO(), side)
    return out.getvalue()


@pytest.fixture
def by_pillow(monkeypatch):
    """`shrunk` as it is where the optional packages are not installed."""

    def shrunk_by_pillow(content: bytes, side: int) -> bytes:
        with monkeypatch.context() as context:
            context.setitem(sys.modules, "simplejpeg", None)
            packages.cache_clear()
            try:
                return shrunk(content, side)
            finally:
                packages.cache_clear()

    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    return shrunk_by_pillow


@pytest.mark.parametrize("side", [240, 180, 150, 110])
def test_the_optional_packages_shrink_no_less_faithfully_than_pillow(by_pillow, side):
    photos = sorted(Path(ROOT, "images/test").glob("photo_*.jpg"))
    errors = []
    for photo in photos:
        content, image = photo.read_bytes(), load_image(str(photo))
        with_packages, with_pillow = (Image.open(io.BytesIO(way(content, side))) for way in (shrunk, by_pillow))
        assert with_packages.size == with_pillow.size and min(with_packages.size) == side
        wanted = np.asarray(image.resize(with_pillow.size, Image.Resampling.LANCZOS), float)
        errors.append([np.square(wanted - np.asarray(found)).mean() for found in (with_packages, with_pillow)])
    ours, pillows = np.mean(errors, axis=0)
    assert 0 < ours <= 1.02 * pillows


def test_what_is_not_an_ordinary_jpeg_is_shrunk_by_pillow_as_ever(by_pillow):
    image = Image.effect_noise((90, 60), 50).convert("RGB")
    for content in (
        encoded(image.convert("L"), "JPEG"),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "PNG"),
        with_exif("JPEG", exif(orientation_entry(6))),
    ):
        assert shrunk(content, 10) == by_pillow(content, 10)


def webp_canvas(width: int, height: int) -> bytes:
    chunk = (
        b"VP8X" + struct.pack("<LL", 10, 0x10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + chunk + encoded(corners(), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<L", len(body)) + body


def resized_tiff(tags: dict[int, int]) -> bytes:
    """A TIFF whose tags promise more than it holds."""
    content = bytearray(encoded(Image.new("L", (32, 32)), "TIFF", compression="tiff_lzw"))
    (start,) = struct.unpack_from("<L", content, 4)
    entries = [content[start + 2 + i * 12 :][:12] for i in range(struct.unpack_from("<H", content, start)[0])]
    entries = [entry for entry in entries if struct.unpack_from("<H", entry)[0] not in tags]
    entries += [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items()]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    new = len(content) + len(content) % 2
    content[4:8] = struct.pack("<L", new)
    content += bytes(new - len(content)) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        webp_canvas(16_000, 16_000),
        resized_tiff({256: 30_000, 257: 30_000}),
        resized_tiff({322: 60_000, 323: 60_000}),
        encoded(Image.new("1", (9_500, 9_500)), "PNG"),
        encoded(corners(), "JPEG2000").replace(struct.pack(">LL", 32, 16), struct.pack(">LL", 60_000, 60_000)),
    ],
)
def test_too_many_pixels_are_refused_before_memory_is_allocated(content):
    assert verdict(load_image, content) == verdict(check_image, content) == "too_many_pixels"


@pytest.mark.parametrize("edge", [None, 16])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_verdict_keeps_the_image_in_memory(kind, edge):
    size = (1511, 307)  # of no other image in this process
    content = encoded(Image.effect_noise(size, 50).convert("RGB"), kind)
    with pytest.raises(BadImageError) as kept:
        decode(content[: len(content) * 2 // 3], edge)
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), Image.Image) and thing.size == size]
    assert kept.value.reason


def test_tags_that_share_their_values_take_no_memory():
    """A directory of 4,000 tags that point at the same megabyte: 4 GB for a reader that copies each."""
    image = bytearray(encoded(corners(), "TIFF"))
    (start,) = struct.unpack_from("<L", image, 4)
    own = image[start + 2 : start + 2 + 12 * struct.unpack_from("<H", image, start)[0]]
    image += bytes(2**20)
    extra = b"".join(struct.pack("<HHLL", tag, 1, 2**20, 0) for tag in range(40_000, 44_000))
    directory = len(image)
    image[4:8] = struct.pack("<L", directory)
    image += struct.pack("<H", len(own) // 12 + 4_000) + own + extra + bytes(4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert is_upright(load_image(bytes(image)), 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB


# ---- errors that say nothing about an image ----


def test_a_missing_file_is_a_verdict_and_a_missing_folder_is_not(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(corners(), "PNG"))
    with pytest.raises(BadImageError, match="no such file"):
        load_image(str(tmp_path / "images" / "b.png"))
    with pytest.raises(BadImageError, match="no such file"):
        load_image(str(tmp_path / "images" / "sub" / "b.png"), folder=str(tmp_path / "images"))
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="a.png"):
        load_image(str(tmp_path / "images" / "a.png"))
    (tmp_path / "images").mkdir()  # the mount point of a disk
    with pytest.raises(FileNotFoundError, match="the folder .*images is missing, empty or unreadable.*a.png"):
        load_image(str(tmp_path / "images" / "a.png"))


def test_a_folder_that_is_missing_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "a.png").write_bytes(encoded(corners(), "PNG"))
    monkeypatch.setattr("time.sleep", lambda seconds: os.path.exists(tmp_path / "away") and come_back())

    def come_back():
        (tmp_path / "away").rename(tmp_path / "images")

    assert is_upright(load_image(str(tmp_path / "images" / "a.png")), 1)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300 + ".png", "folder", "pipe", "a.png/b.png", "\ud800.png"])
def test_a_name_that_cannot_be_an_image_is_a_verdict_at_once(tmp_path, name):
    (tmp_path / "a.png").write_bytes(encoded(corners(), "PNG"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadImageError):
        load_image(os.path.join(str(tmp_path), name))


def test_too_many_open_files_is_not_a_verdict(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(corners(), "PNG"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError) as caught:
            read_bytes(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE and caught.value.filename == str(path)


def test_a_disk_error_names_the_file():
    """The kernel raises EIO for unmapped memory of a process."""
    with pytest.raises(OSError) as caught:
        read_bytes("/proc/self/mem")
    assert caught.value.errno == errno.EIO and caught.value.filename == "/proc/self/mem"


WITH_LITTLE_MEMORY = """
import resource, sys
from component.image.load import load_image
from component.image.reading import BadImageError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 12 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        load_image(path)
    except (BadImageError, MemoryError) as error:
        print(type(error).__name__)
"""


def test_too_little_memory_is_not_a_verdict_on_a_good_image_but_damage_still_is(tmp_path):
    photo = Image.effect_noise((2400, 2400), 50)
    for kind, options in (("JPEG", {"progressive": True}), ("PNG", {"compress_level": 0}), ("WEBP", {"method": 0})):
        (tmp_path / kind).write_bytes(encoded(photo, kind, **options))
    (tmp_path / "damaged").write_bytes(encoded(corners(), "JPEG")[:400])
    paths = [str(tmp_path / name) for name in ("JPEG", "PNG", "WEBP", "damaged")]
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, *paths]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == ["MemoryError"] * 3 + ["BadImageError"], done.stderr
