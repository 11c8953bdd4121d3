"""What tells two contents of a file apart without reading them."""

import hashlib
import io
import os
import struct
from typing import NamedTuple

from component.ground.remote import RemoteFile, RemoteInfo, is_remote, remote_info
from component.ground.retries import with_retries

MISSING = -1  # in an array of `FileState.number`: no such file


class FileState(NamedTuple):
    """A file whose state is unchanged is taken to have the same content.

    Size and modification time alone are not enough: `rsync -t`, `cp -p`, `touch -r` and reproducible archives restore
    them. The status change time cannot be set by a program, and the inode differs for a file that replaced another.
    What remains unnoticed is a change on a file system that keeps neither. A remote file has its `RemoteInfo.version`
    in place of ctime_ns and inode, and no times.

    Attributes:
        size: in bytes.
        mtime_ns, ctime_ns: times of the last change of the content and of the status, in nanoseconds (on Windows,
            ctime_ns is the time of creation).
        inode: number of the file within its file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: str | io.RawIOBase) -> "FileState":
        """State of a path or of an open file. Raises OSError as `with_retries`, and FileNotFoundError."""
        if isinstance(file, RemoteFile):
            return cls._of_remote(file.info)
        if isinstance(file, str) and is_remote(file):
            return cls._of_remote(with_retries(lambda: remote_info(file)))
        status = with_retries(lambda: os.stat(file.fileno() if isinstance(file, io.IOBase) else file))
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @classmethod
    def _of_remote(cls, info: RemoteInfo) -> "FileState":
        return cls(info.size, 0, *divmod(info.version, 2**64))

    @property
    def number(self) -> int:
        """The state in 63 bits, never `MISSING`: for an int64 array of the states of many files."""
        packed = struct.pack("<4Q", *(value % 2**64 for value in self))
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
