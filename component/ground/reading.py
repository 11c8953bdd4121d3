"""Opening files to read: on a disk, or through `component.ground.remote`."""

import io
import os
from contextlib import suppress

from component.ground.remote import RemoteFile, is_remote, remote_info
from component.ground.retries import with_retries

_BUFFER_BYTES = 2**17


def is_file(path: str) -> bool:
    """Whether there is a file, here or in a store. Raises OSError, or as `RemoteFile`, if a store does not answer."""
    if not is_remote(path):
        return os.path.isfile(path)
    try:
        return with_retries(lambda: remote_info(path)).size >= 0
    except FileNotFoundError:
        return False


def absolute(path: str) -> str:
    """`os.path.abspath` of a path on a disk; a remote one is absolute."""
    return path if is_remote(path) else os.path.abspath(path)


def read_file(path: str) -> bytes:
    """The content of a file. Raises as `with_retries`."""
    with open_to_read(path) as file:
        return file.read()


def open_to_read(path: str) -> io.BufferedReader:
    """Open a file whose every read is one of `with_retries`.

    Raises:
        OSError: here or from a read; it names the file.
    """
    return io.BufferedReader(RemoteFile(path) if is_remote(path) else _PatientFile(path), _BUFFER_BYTES)


def open_unbuffered(path: str, read_ahead: bool = False) -> io.RawIOBase:
    """Open a file to read parts of it.

    Args:
        read_ahead: it will be read from front to back, see `RemoteFile`.
    """
    return RemoteFile(path, read_ahead) if is_remote(path) else open(path, "rb", buffering=0)


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
