"""Which files are taken for images, by their names."""

import os
from collections.abc import Sequence

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def is_hidden(name: str) -> bool:
    """What programs leave behind: `.ipynb_checkpoints`, `._1.jpg`, and the folder of a Mac's zip file."""
    return name.startswith(".") or name == "__MACOSX"


def list_images(folder: str) -> list[str]:
    """The paths of the pictures right inside a folder, sorted by name, without hidden ones."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name))
    return [os.path.join(folder, name) for name in names]


def image_files(paths: Sequence[str]) -> list[str]:
    """The paths, with each folder replaced by the pictures in it.

    Raises:
        ValueError: a folder holds none.
    """
    files = []
    for path in paths:
        found = list_images(path) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"the folder {path} holds no picture ({', '.join(IMAGE_ENDINGS)}).")
        files += found
    return files
