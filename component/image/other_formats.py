"""Names the format of a file that is not in one of the formats that we read."""

import re
from contextlib import suppress

from PIL import Image

# Formats that other programs show but Pillow alone does not: how they begin, and the plugin that reads them.
_BY_PLUGIN = {
    "HEIC": (re.compile(rb"....ftyp(?:hei[cfmsvx]|hev[cmsx]|mi[af]1|msf1)", re.DOTALL), "pillow-heif"),
    "JPEG XL": (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "pillow-jxl-plugin"),
}

# Name → how such files begin, and the offset of that: formats that people meet, and formats whose files could be taken
# for plain text. Pillow's list of what it opens comes in addition.
SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    # images
    "raw photograph of Canon": (4, (b"ftypcrx",)),
    "raw photograph of Fujifilm": (0, (b"FUJIFILMCCD-RAW",)),
    "raw photograph of Olympus": (0, (b"IIRO", b"IIRS", b"MMOR")),
    "raw photograph of Panasonic": (0, (b"IIU\0",)),
    "raw photograph of Sigma": (0, (b"FOVb",)),
    "DjVu": (0, (b"AT&TFORM",)),
    "Photoshop": (0, (b"8BPS", b"8BIM")),
    "GIMP": (0, (b"gimp xcf",)),
    "JPEG XR": (0, (b"II\xbc",)),
    "OpenEXR": (0, (b"\x76\x2f\x31\x01",)),
    "Radiance HDR": (0, (b"#?RADIANCE", b"#?RGBE")),
    "FLIF": (0, (b"FLIF",)),
    "BPG": (0, (b"BPG\xfb",)),
    "QOI": (0, (b"qoif",)),
    "DDS": (0, (b"DDS ",)),
    "FITS": (0, (b"SIMPLE  =",)),
    "DICOM": (128, (b"DICM",)),
    "portable anymap": (0, tuple(b"P%c\n" % letter for letter in b"1234567fF")),
    "XPM or XBM": (0, (b"/* XPM */", b"! XPM2", b"#define ", b"/* XBM")),
    "macOS icon": (0, (b"icns",)),
    "image in base64": (0, (b"data:", b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"Qk0", b"SUkqA", b"TU0AK")),
    # documents
    "PDF": (0, (b"%PDF", b"\xef\xbb\xbf%PDF")),
    "PostScript": (0, (b"%!", b"\x04%!")),
    "RTF": (0, (b"{\\rtf",)),
    "TeX": (0, (b"\\documentclass", b"\\input")),
    "Microsoft Office": (0, (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",)),
    "XML": (0, (b"<?xml", b"\xef\xbb\xbf<?xml", b"<\0?\0x\0m\0l\0", b"\0<\0?\0x\0m\0l")),
    "e-mail or web archive": (0, (b"MIME-Version:", b"From ", b"From:", b"Received:", b"Return-Path:")),
    "calendar or contact": (0, (b"BEGIN:",)),
    "key or certificate": (0, (b"-----BEGIN ", b"ssh-", b"PuTTY-User-Key-File", b"$ANSIBLE_VAULT", b"age-encryption")),
    "script": (0, (b"#!",)),
    "e-book": (60, (b"BOOKMOBI", b"TEXtREAd")),
    "compiled help": (0, (b"ITSF",)),
    "drawing or 3D model": (
        0,
        (b"AC10", b"ISO-10303-21", b"solid ", b"ply\n", b"ply\r", b"#VRML", b"BLEND"),
    ),
    "drawing in DXF": (0, (b"  0\nSECTION", b"  0\r\nSECTION", b"0\nSECTION", b"0\r\nSECTION")),
    "font": (0, (b"OTTO", b"wOFF", b"wOF2", b"ttcf", b"STARTFONT")),
    "shortcut": (0, (b"L\0\0\0\1\x14\2\0", b"[InternetShortcut]", b"[Desktop Entry]")),
    # sound and video
    "MP4 or QuickTime": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
    "RIFF": (0, (b"RIFF", b"RIFX", b"RF64")),
    "IFF": (0, (b"FORM", b"LIST", b"CAT ")),
    "Matroska or WebM": (0, (b"\x1a\x45\xdf\xa3",)),
    "Windows Media": (0, (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",)),
    "MPEG": (0, (b"\0\0\1\xba", b"\0\0\1\xb3")),
    "Flash": (0, (b"FLV\x01", b"FWS", b"CWS", b"ZWS")),
    "RealMedia": (0, (b".RMF", b".ra\xfd")),
    "MP3 or AAC": (0, (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9", b"ADIF")),
    "sound": (0, (b"OggS", b"fLaC", b"MThd", b".snd", b"MAC ", b"wvpk", b"TTA1", b"MPCK", b"DSD ", b"caff")),
    "playlist or subtitles": (0, (b"#EXTM3U", b"[playlist]", b"WEBVTT", b"[Script Info]")),
    # archives
    "zip": (0, (b"PK\3\4", b"PK\5\6", b"PK\7\x08")),
    "gzip, bzip2, xz, zstd or lzip": (0, (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"LZIP")),
    "7-Zip": (0, (b"7z\xbc\xaf\x27\x1c",)),
    "RAR": (0, (b"Rar!", b"RE~^")),
    "tar": (257, (b"ustar",)),
    "LHA": (2, (b"-lh", b"-lz")),
    "archive": (0, (b"07070", b"!<arch>", b"MSCF", b"ISc(", b"StuffIt", b"SIT!", b"xar!", b"MSWIM", b"hsqs", b"sqsh")),
    "ISO 9660": (32769, (b"CD001",)),
    "disk image": (0, (b"conectix", b"vhdxfile", b"KDMV", b"# Disk Descriptor", b"<<< ")),
    # data and programs
    "SQLite": (0, (b"SQLite format 3",)),
    "table": (0, (b"PAR1", b"PARE", b"ORC", b"Obj\x01", b"ARROW1", b"FEA1", b"\x89HDF", b"GRIB", b"CDF", b"MATLAB")),
    "NumPy": (0, (b"\x93NUMPY",)),
    "program": (0, (b"\x7fELF", b"MZ", b"ZM", b"dex\n")),
    "patch": (0, (b"diff ", b"--- ", b"BSDIFF40", b"PATCH")),
    "game data": (0, (b"IWAD", b"PWAD", b"NES\x1a", b"UnityFS", b"VBSP")),
    "encrypted file": (0, (b"Salted__", b"LUKS", b"-FVE-FS-")),
    "pointer of Git LFS (git lfs pull fetches the file)": (0, (b"version https://git-lfs",)),
    "torrent": (0, (b"d8:", b"d10:", b"d13:")),
}

_MAX_TEXT_BYTES = 2**16  # an error page or message is not longer; a longer text may be a document of the user
_NOT_IN_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HTML = re.compile(rb"<(?:html|head|body|script|!doctype html)\b", re.IGNORECASE)


def what_else(content: bytes) -> tuple[str, str]:
    """Reason and detail for content that is not in one of FORMATS.

    Returns:
        `empty`, `html` or `text`, an answer in place of an image; `svg`, `no_plugin` or `other_format`, which another
        program may show; or `not_image`, if nothing is known about it.
    """
    if not content:
        return "empty", ""
    start = content[:1024]
    if b"<svg" in start.lower():
        return "svg", ""
    for name, (magic, plugin) in _BY_PLUGIN.items():
        if magic.match(content):
            return "no_plugin", f"{name}; convert it to JPEG, for example with {plugin}"
    is_text = not _NOT_IN_TEXT.search(start)
    name = _other_format(content)
    if is_text and name in (None, "XML") and _HTML.search(start):
        return "html", ""
    if name:
        return "other_format", name
    if is_text and len(content) <= _MAX_TEXT_BYTES and not _NOT_IN_TEXT.search(content):
        with suppress(UnicodeDecodeError):
            return "text", " ".join(content.decode("utf-8-sig").split())[:60]
    return "not_image", ""


def _other_format(content: bytes) -> str | None:
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(Exception):
            if accepts and accepts(content[:16]) is True:
                return name
    for name, (offset, signatures) in SIGNATURES.items():
        if content.startswith(signatures, offset):
            return name
    return None
