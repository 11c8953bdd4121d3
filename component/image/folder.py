"""Which files are taken for images, by their names."""

import logging
import os
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from component.image.container import FORMATS

logger = logging.getLogger(__name__)

# All names that Pillow knows for the formats that are read by their content. MPO is JPEG with further images in it.
IMAGE_ENDINGS = tuple(
    sorted(ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
)
# Captions, licences and tables often lie next to images; passing over them needs no warning.
_COMPANIONS = (".csv", ".html", ".json", ".jsonl", ".md", ".parquet", ".tar", ".tsv", ".txt", ".xml", ".yaml", ".yml")
_MOST_ENDINGS = 5  # in one warning


def is_image_name(name: str) -> bool:
    """Whether the name ends as that of an image, in small letters or capitals.

    >>> is_image_name("a.AVIF"), is_image_name("a.heic")
    (True, False)
    """
    return name.lower().endswith(IMAGE_ENDINGS)


def is_hidden(name: str) -> bool:
    """Whether a program left this file or folder: `.ipynb_checkpoints`, `._1.jpg`, and the folder of a Mac's zip."""
    return name.startswith(".") or name == "__MACOSX"


class PassedOver:
    """Counts the files that are not taken for images."""

    def __init__(self):
        self._endings: Counter[str] = Counter()
        self._first = ""

    def add(self, path: str) -> None:
        ending = os.path.splitext(path)[1].lower()
        if ending not in _COMPANIONS and not is_hidden(os.path.basename(path)):
            self._endings[ending or "without an ending"] += 1
            self._first = self._first or path

    def warn(self) -> None:
        """Log one warning if there were any."""
        if not self._endings:
            return
        endings = [f"{count} {ending}" for ending, count in self._endings.most_common(_MOST_ENDINGS)]
        endings += ["…"] if len(self._endings) > _MOST_ENDINGS else []
        logger.warning(
            "%d files do not have the name of an image and are skipped: %s (the first: %s).",
            *(self._endings.total(), ", ".join(endings), self._first),
        )


def list_images(folder: str, passed_over: PassedOver) -> list[str]:
    """The paths of the images directly in a folder, sorted by name, without hidden ones."""
    images = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if is_image_name(name) and not is_hidden(name):
            images.append(path)
        elif os.path.isfile(path):
            passed_over.add(path)
    return images


def image_files(paths: Sequence[str]) -> list[str]:
    """The paths, with each folder replaced by the images in it. Logs a warning about other files.

    Raises:
        ValueError: a folder holds no images.
    """
    files, passed_over = [], PassedOver()
    for path in paths:
        found = list_images(path, passed_over) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"the folder {path} holds no images ({', '.join(IMAGE_ENDINGS)}).")
        files += found
    passed_over.warn()
    return files
