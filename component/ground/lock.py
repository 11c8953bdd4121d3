"""One writer at a time: who writes to a place holds it, and a second one is told who does."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from component.ground.files import fcntl, name_beside, sweep

logger = logging.getLogger(__name__)

LOCK = "_lock"  # in a folder; by its first letter, transformers does not upload it
_descriptors: set[int] = set()


@contextmanager
def sole_writer(path: str | None, inside: bool = False) -> Iterator[None]:
    """Hold a file or folder that is to be written until the block ends; clear away what killed writers left there.

    The kernel holds the lock and lets go of it with the process, however that ends; what a killed one leaves is a
    file of a few bytes, which the next takes over. It holds between machines too on NFS, unless mounted with `nolock`
    or `local_lock`. Where there are no locks at all, a warning says so; Windows goes without.

    Args:
        path: None: nothing is held.
        inside: the lock lies in the folder `path`, which is made, and not beside it. If nothing else is put there,
            the folder goes again.

    Raises:
        ValueError: another process holds it; the message names that one.
        OSError: the lock cannot be written.
    """
    if path is None:
        yield
        return
    path = os.path.realpath(path)
    lock_file = os.path.join(path, LOCK) if inside else name_beside(path, "lock")
    is_new = inside and not os.path.isdir(path)
    if is_new:
        os.makedirs(path, exist_ok=True)
    try:
        with _locked(lock_file, path) if fcntl else nullcontext():
            sweep(os.path.dirname(lock_file))
            yield
    finally:
        if is_new:
            with suppress(OSError):  # something was written there, as it should
                os.rmdir(path)


@contextmanager
def sole_writers(*paths: str | None) -> Iterator[None]:
    """Hold several files, as `sole_writer` holds one."""
    with ExitStack() as held:
        for path in paths:
            held.enter_context(sole_writer(path))
        yield


@contextmanager
def _locked(lock_file: str, path: str) -> Iterator[None]:
    while True:
        descriptor = os.open(lock_file, os.O_CREAT | os.O_RDWR, 0o666)
        owner = os.read(descriptor, 1000).decode(errors="replace")
        if owner and not owner.startswith("process "):
            os.close(descriptor)
            raise ValueError(f"{lock_file} is not a lock of this program, which has to put one there. Move it away.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"{path} is being written by another run ({owner or 'it has just begun'}). Wait for it, or write to "
                "another place."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start two runs that write there.", path, error.strerror)
            break
        if _is_still_there(lock_file, descriptor):  # else the one before removed it, after it was opened here
            break
        os.close(descriptor)
    _descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        with suppress(FileNotFoundError):  # the folder is gone
            os.unlink(lock_file)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _is_still_there(lock_file: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock_file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    # A forked worker that outlives this process for seconds must not hold the lock for as long.
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
