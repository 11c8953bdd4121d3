"""Try again to read what does not answer for a moment: one policy for all reads, from a disk or over a network.

An error of the environment (EIO, ESTALE, too many open files, no memory, a folder that is not mounted yet) says
nothing about the file, so the read is tried again. An error that the name causes is raised at once.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

RETRY_SECONDS = (0.2, 1.0)  # pauses before the second and the third attempt
# The name is not that of a regular file, or the file may not be read, and waiting will not change that.
NOT_A_FILE = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EPERM}

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
