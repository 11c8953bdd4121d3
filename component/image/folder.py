"""Which files are taken for images, by their names."""

import os

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def is_hidden(name: str) -> bool:
    """What programs leave behind: `.ipynb_checkpoints`, `._1.jpg`, and the folder of a Mac's zip file."""
    return name.startswith(".") or name == "__MACOSX"


def list_images(folder: str) -> list[str]:
    """The paths of the pictures right inside a folder, sorted by name, without hidden ones."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name))
    return [os.path.join(folder, name) for name in names]
