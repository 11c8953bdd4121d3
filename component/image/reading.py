"""One image file → its bytes, or the verdict that it has none. Needs no image library."""

import os
import stat

from component.ground.retries import NOT_A_FILE, has_entries, with_retries

MAX_FILE_BYTES = 2**27

# Ends the reason of an image whose shard or table was removed or replaced while it was in use.
SINCE_INDEXED = "since it was indexed; start again"


class BadImageError(ValueError):
    """A verdict on an image, from its bytes or its name. Reading it again gives the same verdict.

    An error of the environment (a disk that does not answer, too many open files, no memory) is not a verdict: it
    stays the OSError or MemoryError that it is.

    Attributes:
        reason: one word to count by, if the verdict is on a file.
        detail: more about it.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MissingImageError(BadImageError):
    """There is no such file, although its folder exists."""


def read_bytes(path: str, folder: str | None = None) -> bytes:
    """Read an image file.

    Args:
        folder: must exist, and hold anything, for a missing file to be a verdict; default: the file's own folder.

    Raises:
        BadImageError: `no such file`, `bad_filename`, `not_a_file` or `too_large`.
        OSError: anything else that prevents reading, after three attempts; it names the path.
        MemoryError: not enough memory for the file.
    """
    folder = folder or os.path.dirname(path) or "."
    try:
        return with_retries(lambda: _read_path(path), folder)
    except BadImageError:
        raise
    except ValueError as error:
        raise BadImageError("bad_filename", str(error)) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            if has_entries(folder):
                raise MissingImageError("no such file") from None
            message = f"no such file, and the folder {folder} is missing, empty or unreadable; check its path and disk"
            raise FileNotFoundError(error.errno, message, path) from None
        if error.errno in NOT_A_FILE:
            raise BadImageError("not_a_file", error.strerror) from None
        raise


def _read_path(path: str) -> bytes:
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("not_a_file", "a folder, a pipe or a device")
        check_size(status.st_size)
        try:
            return file.read()
        except OSError as error:  # raised by `read`, it does not name the file
            raise OSError(error.errno, error.strerror, path) from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a named pipe too without waiting for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_size(size: int) -> None:
    """Raise BadImageError if a file of this many bytes is too large to be read."""
    if size > MAX_FILE_BYTES:
        raise BadImageError("too_large", f"{size:,} bytes; at most {MAX_FILE_BYTES:,}")
