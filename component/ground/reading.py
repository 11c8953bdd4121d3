"""Reading from a disk that may not answer for a moment: one policy for everything that is read.

An error of the environment (EIO, ESTALE, too many open files, no memory, a folder that is not mounted yet) says
nothing about the file, so the read is tried again. An error that the name causes is raised at once.
"""

import errno
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

RETRY_SECONDS = (0.2, 1.0)  # pauses before the second and the third attempt
# The name is not that of a regular file, and waiting will not change that.
NOT_A_FILE = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_BUFFER_BYTES = 2**17

T = TypeVar("T")


def with_retries(read: Callable[[], T], folder: str | None = None) -> T:
    """Return `read()`, called up to three times while it raises an error of the environment.

    Args:
        read: opens the file itself, so that the next attempt starts from the beginning.
        folder: a missing file is raised at once only while this folder holds anything. None: always at once.

    Raises:
        OSError, MemoryError: of the last attempt.
    """
    for seconds in RETRY_SECONDS:
        try:
            return read()
        except FileNotFoundError:
            if folder is None or has_entries(folder):
                raise
        except (OSError, MemoryError) as error:
            if getattr(error, "errno", None) in NOT_A_FILE:
                raise
        time.sleep(seconds)
    return read()


def has_entries(folder: str) -> bool:
    """Whether there is anything in a folder. An empty one may be where a disk is mounted, or will be."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def read_file(path: str) -> bytes:
    """The content of a file. Raises as `with_retries`."""
    with open_to_read(path) as file:
        return file.read()


def open_to_read(path: str) -> io.BufferedReader:
    """Open a file whose every read is one of `with_retries`.

    Raises:
        OSError: here or from a read; it names the file.
    """
    return io.BufferedReader(_PatientFile(path), _BUFFER_BYTES)


class _PatientFile(io.RawIOBase):
    """A file that is opened again, at the same position, after a read failed: only that helps against ESTALE."""

    def __init__(self, path: str):
        self.name, self._position = path, 0
        self._file = with_retries(self._open)
        self._identity = self._known_by()

    def _open(self) -> io.FileIO:
        return open(self.name, "rb", buffering=0)

    def _known_by(self) -> tuple[int, int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_ino, status.st_size, status.st_mtime_ns

    def readinto(self, buffer) -> int:
        def read() -> int:
            if self._file.closed:
                self._file = self._open()
                if self._known_by() != self._identity:
                    raise ValueError(f"{self.name} has changed while it was read. Start again.")
                self._file.seek(self._position)
            try:
                return self._file.readinto(buffer)
            except OSError as error:
                with suppress(OSError):
                    self._file.close()
                raise OSError(error.errno, error.strerror, self.name) from None  # `readinto` does not name the file

        count = with_retries(read)
        self._position += count
        return count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()
