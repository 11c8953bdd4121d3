"""Locks for output files and folders: one process writes, and the error of a second one names the first."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

from filelock import FileLock, Timeout

from component.ground.files import hidden_sibling, sweep

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK = "_lock"  # in a folder; transformers does not upload names that begin with "_"


@contextmanager
def sole_writer(path: str | None, inside: bool = False) -> Iterator[None]:
    """Hold the lock of an output file or folder, and remove what killed writers left there.

    The operating system releases the lock when the process ends, however it ends. The lock also holds between machines
    on NFS, unless it is mounted with `nolock` or `local_lock`. On a file system without locks, a warning is logged.

    Args:
        path: None: no lock.
        inside: keep the lock in the folder `path`, which is created, instead of next to it. If the folder was created
            here and is empty at the end, it is removed.

    Raises:
        ValueError: another process holds the lock; the message names it.
        OSError: the lock file cannot be written.
    """
    if path is None:
        yield
        return
    path = os.path.realpath(path)
    lock_file = os.path.join(path, LOCK) if inside else hidden_sibling(path, "lock")
    is_new = inside and not os.path.isdir(path)
    if is_new:
        os.makedirs(path, exist_ok=True)
    try:
        with _locked(lock_file, path):
            sweep(os.path.dirname(lock_file))
            yield
    finally:
        if is_new:
            with suppress(OSError):  # not empty, as it should be
                os.rmdir(path)


@contextmanager
def sole_writers(*paths: str | None) -> Iterator[None]:
    """Hold the locks of several files, see `sole_writer`."""
    with ExitStack() as held:
        for path in paths:
            held.enter_context(sole_writer(path))
        yield


@contextmanager
def exclusive(file: IO) -> Iterator[None]:
    """Hold the lock of an open file; other processes that ask for it wait. Without effect where there are no locks."""
    with suppress(OSError):
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _locked(lock_file: str, path: str) -> Iterator[None]:
    with suppress(OSError), open(lock_file, "rb") as file:  # missing; or locked, which Windows does not let us read
        if (begin := file.read(8)) and begin != b"process ":  # which earlier versions wrote into it
            raise ValueError(f"{lock_file} is not a lock of this program, which needs that name. Move it away.")
    owner_file = f"{lock_file}-owner"  # Windows lets no one read a locked file
    lock = FileLock(lock_file, timeout=0.1)  # long enough to try again if the last owner is just leaving
    try:
        lock.acquire()
    except Timeout:
        owner = "it has just begun"
        with suppress(OSError), open(owner_file, encoding="utf-8") as file:
            owner = file.read()
        raise ValueError(
            f"{path} is being written by another run ({owner}). Wait for it, or write to another path."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise
        logger.warning("%s cannot be locked (%s): do not start two runs that write there.", path, error)
    try:
        with open(owner_file, "w", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        for name in (owner_file, lock_file):
            with suppress(OSError):  # the folder was removed; or Windows, where filelock removes its file itself
                os.unlink(name)
        lock.release()
