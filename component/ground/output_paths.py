"""Checks of the path of an output, for before the work starts. Each raises ValueError, with the reason."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress


def require_writable(path: str) -> None:
    """Raise ValueError, with the reason, if `new_file` could not write to this path."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file")
    if not os.path.isdir(folder):
        raise ValueError(f"the folder {folder} does not exist; create it first")
    try:
        tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
        with suppress(FileNotFoundError):
            os.lstat(path)  # fails if the name is too long; the temporary name is not
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror})") from None


def require_writable_folder(path: str) -> None:
    """Raise ValueError, with the reason, if the folder, or the nearest existing parent of it, cannot be written to."""
    nearest = os.path.abspath(path)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise ValueError(f"{path} cannot be a folder: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: no permission in {nearest}")


def require_empty_folder(path: str) -> None:
    """As `require_writable_folder`, and raise ValueError if there is anything in the folder, for `new_folder`."""
    require_writable_folder(path)
    if os.path.isdir(path) and os.listdir(path):
        raise ValueError(f"{path} is not empty; give a new folder")


def require_not_an_input(path: str, inputs: Iterable[str]) -> None:
    """Raise ValueError if `new_file` would replace one of the files that are read."""
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise ValueError(f"{path} is one of the files that are read; give the output another name")
