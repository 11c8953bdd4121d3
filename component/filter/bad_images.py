"""Deleting bad images, which happens only when the user asks for it."""

import mimetypes
import os
from collections.abc import Iterable
from contextlib import suppress

from component.ground.file_state import FileState
from component.image.check import check_image
from component.image.folder import is_image_name
from component.image.reading import BadImageError
from component.pairs.paths import writable_file

# What no program would show as an image: nothing, half a file, or the answer of a server in place of one. Anything
# else may be worth keeping: a GIF, a damaged photograph, a format that another program shows, or an unknown one.
DELETABLE = {"empty", "truncated", "html", "text"}


class BadImages:
    """Collects the files that may be deleted while a table is filtered.

    Args:
        image_path: folder of the images. Nothing outside it is deleted.
    """

    def __init__(self, image_path: str):
        self._image_path = image_path
        self._found: dict[str, tuple[str, FileState]] = {}  # path → reason, state of the file

    def add(self, filenames: Iterable[str], reasons: Iterable[str]) -> None:
        """Take the next rows and their reasons, see `judge_pairs`."""
        for filename, reason in zip(filenames, reasons, strict=True):
            if reason.partition(":")[0] in DELETABLE and _should_be_an_image(filename):
                # A name that leads outside the folder, also by a link, may be read but not deleted.
                with suppress(ValueError, OSError):
                    path = writable_file(self._image_path, filename)
                    self._found.setdefault(path, (reason, FileState.of(path)))

    def delete(self) -> tuple[int, int]:
        """Delete the files, each after it was checked again.

        Returns:
            The number of files deleted, and of those kept because they have changed or cannot be read any more.
        """
        num_deleted = num_kept = 0
        for path, (reason, state) in self._found.items():
            with suppress(FileNotFoundError):
                if _is_bad(path, reason) and FileState.of(path) == state:
                    os.unlink(path)
                    num_deleted += 1
                else:
                    num_kept += 1
        return num_deleted, num_kept


def _should_be_an_image(filename: str) -> bool:
    """Whether a text under this name is out of place: of a table that names other files, nothing is deleted."""
    media_type, _ = mimetypes.guess_type(filename)
    return is_image_name(filename) or (media_type or "").startswith("image/") or not os.path.splitext(filename)[1]


def _is_bad(path: str, reason: str) -> bool:
    """Whether the file is still refused for this reason."""
    try:
        check_image(path)
    except BadImageError as error:
        return str(error) == reason
    except (OSError, MemoryError):
        pass
    return False
