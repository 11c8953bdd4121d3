"""Which names refer to the same file in a folder: tested in the folder, because the operating system does not say."""

import contextlib
import os
import secrets
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class NameRules:
    """Which differences between names a folder ignores.

    Attributes:
        ignore_case: `Dog.jpg` and `dog.jpg` (macOS, Windows).
        ignore_endings: dots and spaces at the end of a name (Windows).
        ignore_composition: é as one code point and as two (macOS).
    """

    ignore_case: bool = False
    ignore_endings: bool = False
    ignore_composition: bool = False

    @classmethod
    def of(cls, folder: str) -> "NameRules":
        """The rules of a folder that exists, found by writing two empty files and looking for them by other names.

        Raises:
            OSError: the folder cannot be written.
        """
        path = os.path.join(folder, f".names-{secrets.token_hex(4)}-")
        with _empty_file(path + "a"):
            ignore_case = os.path.lexists(path + "A")
            ignore_endings = os.path.lexists(path + "a.") or os.path.lexists(path + "a ")
        with contextlib.suppress(OSError), _empty_file(path + "\u00e9"):  # some file systems hold no such name
            return cls(ignore_case, ignore_endings, os.path.lexists(path + "e\u0301"))
        return cls(ignore_case, ignore_endings)

    def key(self, filename: str) -> str:
        """A key that is equal for names that refer to the same file.

        >>> NameRules(ignore_case=True, ignore_endings=True).key("Dogs./1.JPG ")
        'dogs/1.jpg'
        """
        if self.ignore_composition:
            filename = unicodedata.normalize("NFC", filename)
        if self.ignore_case:
            filename = filename.casefold()
        if self.ignore_endings:
            filename = "/".join(name.rstrip(". ") or name for name in filename.split("/"))
        return filename


STRICTEST = NameRules(True, True, True)


@contextlib.contextmanager
def _empty_file(path: str):
    with open(path, "x"):
        pass
    try:
        yield
    finally:
        os.unlink(path)
