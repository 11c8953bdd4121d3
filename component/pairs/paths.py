"""File names of images in tables: their normal form, and the paths where they may be read or written."""

import functools
import os
import re

# Names that Windows opens as a device, whatever their extension.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
MAX_NAME_BYTES = 255  # of ext4, xfs, btrfs and APFS; NTFS counts letters
MAX_PATH_BYTES = 4096


def needs_normal_name(filenames: str) -> bool:
    """Whether `normal_name` may change one of the names in a text."""
    return any(sign in filenames for sign in ("\ufeff", "\u200b", "\\", "//", "./"))


def normal_name(filename: str) -> str:
    """One name for each file: `./d//x.jpg` and `d\\x.jpg`, as Windows writes it, are `d/x.jpg`.

    Names are compared, hashed and written in this form. Names that `image_file` refuses stay refused.
    Letters are not changed: to most file systems, é in one code point and in two are two names.
    """
    # Copying may leave an invisible byte order mark or zero-width space at either end.
    filename = filename.strip("\ufeff\u200b").replace("\\", "/")
    if ("//" not in filename and "./" not in filename) or filename.startswith("/"):
        return filename
    *folders, name = filename.split("/")
    return "/".join([*(folder for folder in folders if folder not in ("", ".")), name])


def image_file(image_path: str, filename: str) -> str:
    """The path of `filename` inside the folder `image_path`, without access to the disk.

    Raises:
        ValueError: the name is empty, absolute, holds a NUL or a drive letter, or climbs out with `..`.
    """
    filename = normal_name(filename)
    if not filename.strip():
        raise ValueError("empty filename")
    if "\0" in filename:
        raise ValueError("filename holds a NUL byte")
    if filename.startswith("/") or re.match(r"[A-Za-z]:", filename):
        raise ValueError("filename is an absolute path")
    if ".." in filename.split("/"):
        raise ValueError("filename climbs out of image_path with '..'")
    return os.path.join(image_path, filename)


def writable_file(image_path: str, filename: str) -> str:
    """The path under which `filename` may be written inside the folder `image_path`.

    Raises:
        ValueError: with the reason, when the name is unusable or leads outside, also by a symbolic link.
    """
    path = image_file(image_path, filename)
    parts = normal_name(filename).split("/")
    if parts[-1] in ("", "."):
        raise ValueError("filename names a folder")
    if any(DEVICE_NAME.match(part) for part in parts):
        raise ValueError("filename is a device name on Windows")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise ValueError("filename is not valid Unicode") from None
    if max(lengths) > MAX_NAME_BYTES or len(os.fsencode(os.path.abspath(path))) >= MAX_PATH_BYTES:
        raise ValueError(f"filename is longer than the file system allows ({MAX_NAME_BYTES} bytes a name)")
    folder = os.path.dirname(path)
    # The result for a folder is cached; the file is checked each time, because it may be a symbolic link itself.
    if not _leads_inside(folder, image_path) or (os.path.islink(path) and not _is_inside(path, image_path)):
        raise ValueError("filename leaves image_path through a symbolic link")
    if os.path.isdir(path):
        raise ValueError("filename names a folder")
    return path


def _is_inside(path: str, image_path: str) -> bool:
    root = os.path.realpath(image_path)
    return os.path.commonpath([root, os.path.realpath(path)]) == root


_leads_inside = functools.lru_cache(maxsize=10_000)(_is_inside)  # because many rows share a folder
