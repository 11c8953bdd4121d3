"""Writing so that a reader finds the old content or the new one, never a half."""

import json
import os
import shutil
from contextlib import suppress
from typing import Any


def write_json(path: str, content: Any) -> None:
    """Write readable UTF-8 JSON under a temporary name, then rename."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_text(path: str, content: str) -> None:
    """Write UTF-8 under a temporary name, then rename."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(temporary, path)


def replace_folder(new: str, final: str) -> None:
    """Give the finished folder `new` the name `final`; a folder that had the name until now is removed after.

    What lies in it is on disk before: after a power failure too, the name stands for all of it.
    """
    for folder, _, names in os.walk(new):
        for name in names:
            with open(os.path.join(folder, name), "rb+") as file:
                os.fsync(file)
        _sync_folder(folder)
    old = f"{final}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(final):
        os.rename(final, old)
    os.rename(new, final)
    _sync_folder(os.path.dirname(os.path.abspath(final)))
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(path: str) -> None:
    with suppress(OSError):  # Windows and some network file systems cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
