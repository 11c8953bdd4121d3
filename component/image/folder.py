"""Which files are taken for images, by their names."""

import os

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_images(folder: str) -> list[str]:
    """The paths of the pictures right inside a folder, sorted by name."""
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.lower().endswith(IMAGE_ENDINGS)]
