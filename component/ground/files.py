"""Writing so that a reader finds the old content or the new one, never a half.

What is not finished lies beside its place under a name of its own, so that no two writers share it, and is locked by
its writer: `sweep` finds by that what killed ones have left.
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
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
_MACHINE = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_MAX_NAME_BYTES = 150  # of the 255 of a file system
_DEAD_SECONDS = 24 * 60 * 60  # untouched for so long: also what another machine began, whose locks we may not see


@contextmanager
def new_file(path: str, mode: str = "w", sync: bool = True, **options) -> Iterator[IO]:
    """Open a file that gets the name `path` when the block ends, or leaves nothing when it fails.

    Args:
        mode, options: as for `open`; text is UTF-8 unless `encoding` says otherwise.
        sync: wait for the disk, so that the name stands for the whole content after a power failure too.
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
            if fcntl:  # while it is locked: a sweep could take it for dead
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
    """Write UTF-8, whole or not at all."""
    with new_file(path) as file:
        file.write(content)


def write_json(path: str, content: Any) -> None:
    r"""Write readable UTF-8 JSON, whole or not at all.

    JSON has no word for NaN and infinity: they become null. A byte of a file name that is not UTF-8 becomes \udcxx, by
    which `os.fsencode` finds the file again.
    """
    with new_file(path, errors="backslashreplace") as file:
        file.write(json.dumps(_finite(content), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def require_writable(path: str) -> None:
    """Raise ValueError, with the reason, where `new_file` could not give a file this name."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file")
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}; make it first")
    try:
        temporary, descriptor = _open_temporary(os.path.realpath(path))
        os.close(descriptor)
        os.unlink(temporary)
        with suppress(FileNotFoundError):
            os.lstat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror})") from None


def require_writable_folder(path: str) -> None:
    """Raise ValueError, with the reason, if the folder, or the nearest existing parent of it, cannot be written to."""
    nearest = os.path.abspath(path)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise ValueError(f"{path} cannot be a folder: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: no permission in {nearest}")


@contextmanager
def new_folder(path: str) -> Iterator[str]:
    """The path of an empty folder that gets the name `path` when the block ends, or is removed when it fails.

    A folder that has the name until then is removed.
    """
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _temporary_name(path)
    os.mkdir(temporary)
    descriptor = _lock(temporary)
    try:
        yield temporary
        replace_folder(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if reason := full_disk(error):
            raise OSError(f"{path} cannot be written: {reason}") from error
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def full_disk(error: BaseException) -> str | None:
    """What to say of an error that means that a file found no room; None for any other."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror
    # safetensors and torch have classes of their own for it, without a number.
    if any(sign in str(error) for sign in ("os error", "PytorchStreamWriter", "inline_container")):
        return "the disk is full, or a file may not be so large"
    return None


def replace_folder(new: str, final: str) -> None:
    """Give the finished folder `new` the name `final`; a folder that had the name until now is removed after.

    What lies in it is on disk before: after a power failure too, the name stands for all of it. The name never stands
    for nothing where the system can exchange two folders (Linux, but for NFS); elsewhere a process that is killed
    between two renames leaves the old folder to the next `sweep`, which gives it its name back.
    """
    for folder, _, names in os.walk(new):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync_folder(folder)
    if not os.path.isdir(final):
        os.rename(new, final)
    elif not _exchange(new, final):
        old = _temporary_name(final, "old")
        os.rename(final, old)
        os.rename(new, final)
        new = old
    _sync_folder(os.path.dirname(os.path.abspath(final)))
    shutil.rmtree(new, ignore_errors=True)


def sweep(folder: str) -> None:
    """Remove what killed writers have left in a folder, not in those inside."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = _TEMPORARY.fullmatch(name)
        path = os.path.join(folder, name)
        if not match or not _is_dead(path, match["machine"]):
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
    """Whether this is a name that `sweep` may remove, and so none to give a file."""
    return _TEMPORARY.fullmatch(name) is not None


def name_beside(path: str, ending: str) -> str:
    """The path of a hidden file beside another, its name as far as there is room for it."""
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return os.path.join(folder, f".{name}.{ending}")


def _temporary_name(path: str, kind: str = "tmp") -> str:
    return name_beside(path, f"{_MACHINE}-{secrets.token_hex(4)}.{kind}")


def _open_temporary(path: str) -> tuple[str, int]:
    while True:
        temporary = _temporary_name(path)
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        if not fcntl:
            return temporary, descriptor
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(temporary):  # else a sweep came between the two
            return temporary, descriptor
        os.close(descriptor)


def _lock(path: str) -> int | None:
    """A descriptor that locks the file or folder until it is closed; None where that is impossible."""
    if not fcntl:
        return None
    descriptor = None
    try:
        # NFS locks what is open for writing, and so no folders.
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _is_dead(path: str, machine: str) -> bool:
    try:
        if machine != _MACHINE and time.time() - os.lstat(path).st_mtime < _DEAD_SECONDS:
            return False
    except OSError:
        return False
    if not fcntl:
        return not os.path.isdir(path)
    descriptor = _lock(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _exchange(first: str, second: str) -> bool:
    """Let two names change places at once (Linux, renameat2); False where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), second)


def _sync(path: str) -> None:
    if not fcntl:  # Windows syncs only what is open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    with suppress(OSError):  # some network file systems cannot
        _sync(path)
