"""Write files and folders so that a reader finds the old content or the new content, never a mixture.

Unfinished output is written next to its final path under a temporary name. Each writer has a name of its own and locks
it, so that `sweep` can tell what killed writers left from what is still being written.
"""

import ctypes
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
_MACHINE = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_MAX_NAME_BYTES = 150  # a file system allows 255, and the temporary name is longer
_ABANDONED_SECONDS = 24 * 60 * 60  # age at which another machine's temporary file is removed: its locks may be hidden
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: str, mode: str = "w", sync: bool = True, **options) -> Iterator[IO]:
    """Open a file that gets the name `path` when the block ends, or is removed when the block raises.

    Args:
        mode, options: as for `open`; text is UTF-8 unless `encoding` says otherwise.
        sync: wait for the disk, so that the file is complete after a power failure too.
    """
    path = os.path.realpath(path)
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    temporary, descriptor = _open_temporary(path)
    try:
        with open(descriptor, mode, **options) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(descriptor)
            if fcntl:  # rename while the file is locked, or a sweep could remove it
                os.replace(temporary, path)
        if not fcntl:
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if sync:
        _sync_folder(os.path.dirname(path))


def write_text(path: str, content: str) -> None:
    """Write a UTF-8 text file with `new_file`."""
    with new_file(path) as file:
        file.write(content)


def write_json(path: str, content: Any) -> None:
    r"""Write a readable UTF-8 JSON file with `new_file`.

    NaN and infinity, which JSON does not have, become null. A byte of a file name that is not UTF-8 becomes \udcxx,
    from which `os.fsencode` restores the name.
    """
    with new_file(path, errors="backslashreplace") as file:
        file.write(json.dumps(_finite(content), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def new_folder(path: str) -> Iterator[str]:
    """Yield the path of an empty folder that gets the name `path` when the block ends.

    A folder of that name is replaced. When the block raises, the new folder is removed.
    """
    with scratch_folder(path) as temporary:
        try:
            yield temporary
            replace_folder(temporary, os.path.realpath(path))
        except BaseException as error:
            if reason := full_disk(error):
                raise OSError(f"{os.path.realpath(path)} cannot be written: {reason}") from error
            raise


@contextmanager
def scratch_folder(path: str) -> Iterator[str]:
    """Yield the path of an empty folder next to `path`, which is removed when the block ends, or by `sweep`."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary_name(path)
    os.mkdir(temporary)
    descriptor = _lock(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def full_disk(error: BaseException) -> str | None:
    """The reason to show if a file could not be written for lack of room, else None."""
    text = str(error)
    found = re.search(r"\(os error (\d+)\)", text)  # safetensors, written in Rust
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number in _FULL_DISK:
        return os.strerror(number)
    if "PytorchStreamWriter" in text or "unexpected pos" in text:  # torch.save, which does not give the number
        return "torch could not write the whole file, most likely because the disk is full"
    return None


def replace_folder(new: str, final: str) -> None:
    """Rename the finished folder `new` to `final`, and remove the folder that had that name.

    The files are synced first, so that `final` is complete after a power failure too, and get the permissions that the
    umask gives. Linux exchanges two folders in one step (except on NFS). Elsewhere, a process that is killed between
    two renames leaves the old folder under a temporary name, and the next `sweep` restores it.
    """
    usual_mode = os.stat(new).st_mode & 0o666
    for folder, _, names in os.walk(new):
        for name in names:
            if name.endswith(".safetensors"):  # safetensors 0.8 creates its files with mode 0600
                os.chmod(os.path.join(folder, name), usual_mode)
            _sync(os.path.join(folder, name))
        _sync_folder(folder)
    try:  # to look first would let another process make the folder before the rename
        os.rename(new, final)
    except OSError:
        if not os.path.isdir(final):
            raise
        if not _exchange(new, final):
            old = _temporary_name(final, "old")
            os.rename(final, old)
            os.rename(new, final)
            new = old
    _sync_folder(os.path.dirname(os.path.abspath(final)))
    shutil.rmtree(new, ignore_errors=True)


def sweep(folder: str) -> None:
    """Remove what killed writers left in a folder (not in its subfolders)."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = _TEMPORARY.fullmatch(name)
        path = os.path.join(folder, name)
        if not match or not _is_abandoned(path, match["machine"]):
            continue
        final = os.path.join(folder, match["name"])
        if match["kind"] == "old" and not os.path.lexists(final):
            os.rename(path, final)
        elif os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)


def is_temporary(name: str) -> bool:
    """Whether `sweep` may remove a file of this name, so that no output should have it."""
    return _TEMPORARY.fullmatch(name) is not None


def hidden_sibling(path: str, ending: str) -> str:
    """Path of a hidden file next to another: .<its name>.<ending>, with a digest in place of a long name."""
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return os.path.join(folder, f".{name}.{ending}")


def _temporary_name(path: str, kind: str = "tmp") -> str:
    return hidden_sibling(path, f"{_MACHINE}-{secrets.token_hex(4)}.{kind}")


def _open_temporary(path: str) -> tuple[str, int]:
    """Create and lock a temporary file for `path`: its name and descriptor."""
    while True:
        temporary = _temporary_name(path)
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        if fcntl:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(temporary):  # else a sweep removed it before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _lock(path: str) -> int | None:
    """Lock an existing file or folder: a descriptor, or None if another process holds it or it cannot be locked."""
    if not fcntl:
        return None
    descriptor = None
    try:
        # NFS locks only what is open for writing, and so no folders.
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _is_abandoned(path: str, machine: str) -> bool:
    """Whether the writer of a temporary file or folder is dead."""
    try:
        if machine != _MACHINE and time.time() - os.lstat(path).st_mtime < _ABANDONED_SECONDS:
            return False
    except FileNotFoundError:
        return False
    if not fcntl:
        return not os.path.isdir(path)  # a file that is open cannot be removed; a folder can
    descriptor = _lock(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _exchange(first: str, second: str) -> bool:
    """Exchange the names of two folders in one step. False if the system (other than Linux) or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):  # macOS, Windows
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _sync(path: str) -> None:
    if not fcntl:  # Windows syncs only files that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    with suppress(OSError):  # some network file systems cannot
        _sync(path)
