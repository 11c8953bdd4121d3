"""Writing so that a reader finds the old content or the new one, never a half."""

import json
import os
import shutil
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
    """Give the finished folder `new` the name `final`; a folder that had the name until now is removed after."""
    old = f"{final}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(final):
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)
