"""Files in object stores and on web servers, such as s3://bucket/key and https://host/file.

Nothing that is open is handed to another process: each opens its own.
"""

import errno
import functools
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from component.ground.file_systems import errors_in_words, file_system, is_web
from component.ground.retries import with_retries

# One request takes about as long as the transfer of a few MB.
FIRST_BLOCK, LARGEST_BLOCK = 2**16, 2**23
SKIPPED_BYTES = 2**20  # a gap below this is part of reading on from front to back
GAP_BYTES = 2**17  # between images that one request brings
AT_ONCE = 32  # requests for the states of many files
_OPEN_FILES = 4  # of a process: with a block of up to LARGEST_BLOCK each
_VERSIONS = ("ETag", "etag", "blob_id", "generation", "version_id", "Content-MD5")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime")

T = TypeVar("T")


def is_remote(path: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


class RemoteInfo(NamedTuple):
    """What a store says of a file.

    Attributes:
        size: in bytes.
        version: 127 bits that change with the content: a digest of the ETag, else of another version or of the time of
            the last change that the store gives.
    """

    size: int
    version: int


def remote_info(path: str) -> RemoteInfo:
    """What the store says of a file; of one that this process has open, what it said when it was opened.

    Raises:
        FileNotFoundError, PermissionError: the store says that there is none, or that it may not be read.
        OSError: the store does not answer.
        ModuleNotFoundError, ValueError: there is no such file system; the message has the command that installs it.
    """
    return _source(path, os.getpid()).info


def expect(path: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Say which (start, stop) of a file will be read next, in order: neighbours come with one request."""
    blocks: list[tuple[int, int]] = []
    for start, stop in ranges:
        if blocks and 0 <= start - blocks[-1][1] <= GAP_BYTES and stop - blocks[-1][0] <= LARGEST_BLOCK:
            blocks[-1] = blocks[-1][0], stop
        else:
            blocks.append((start, stop))
    with_retries(lambda: _source(path, os.getpid())).expected = blocks


def for_each(function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """`function` of each path, in order; if some are remote, of many at the same time."""
    if not any(map(is_remote, paths)):
        return list(map(function, paths))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, paths))


def remote_glob(pattern: str) -> list[str]:
    """The files that match a pattern, sorted. Raises as `remote_info`."""

    def glob() -> list[str]:
        with errors_in_words(pattern):
            files, inside = file_system(pattern)
            return sorted(map(files.unstrip_protocol, files.glob(inside)))

    return with_retries(glob)


class RemoteFile(io.RawIOBase):
    """A remote file, of which only the parts that are read are fetched.

    Args:
        read_ahead: fetch blocks, each as `with_retries`, that grow while the file is read from front to back and start
            small again after a jump, so that skipping from header to header of a tar costs few requests for small
            members and few bytes for large ones. Otherwise fetch what is read, or the block that is expected, see
            `expect`, once.

    Raises:
        As `remote_info`.
    """

    def __init__(self, path: str, read_ahead: bool = True):
        self.name, self._position, self._read_ahead = path, 0, read_ahead
        self._block, self._length = (0, 0), FIRST_BLOCK // 2
        self.info = self._patiently(lambda: remote_info(path))

    def _patiently(self, read: Callable[[], T]) -> T:
        return with_retries(read) if self._read_ahead else read()

    def readinto(self, buffer) -> int:
        start, stop = self._position, min(self._position + len(buffer), self.info.size)
        if start >= stop:
            return 0
        if not self._read_ahead:
            self._block = start, stop
        elif not self._block[0] <= start <= stop <= self._block[1]:
            is_next = self._block[0] <= start <= self._block[1] + SKIPPED_BYTES
            self._length = min(2 * self._length, LARGEST_BLOCK) if is_next else FIRST_BLOCK
            self._block = start, min(max(stop, start + self._length), self.info.size)
        content = self._patiently(lambda: self._source().read(start, stop, self._block))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _source(self) -> "_Source":
        source = _source(self.name, os.getpid())
        if source.info != self.info:
            raise OSError(errno.ESTALE, "it has changed while it was read", self.name)
        return source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.info.size}[whence]
        return self._position


class _Source:
    """A remote file as one process has it open, with the block that was fetched last. Several threads may share it."""

    def __init__(self, path: str):
        with errors_in_words(path):
            files, inside = file_system(path)
            if is_web(path):
                details = files.info(inside)
                etag = details.get("ETag", "W/")
                headers = {} if etag.startswith("W/") else {"If-Match": etag}  # a weak one never matches
                self._file = files.open(inside, "rb", cache_type="none", size=details["size"], headers=headers)
            else:
                # Before `info`: what is open stays that version, and s3fs asks only once.
                self._file = files.open(inside, "rb", cache_type="none")
                details = getattr(self._file, "details", None) or files.info(inside)
        self.path, self._lock, self._start, self._block = path, threading.Lock(), 0, b""
        self.info, self.expected = _info(path, details), []

    def read(self, start: int, stop: int, block: tuple[int, int]) -> bytes:
        """The bytes from start to stop, which are in the last block, an expected one, or in `block`, to be fetched."""
        with self._lock:
            if not self._start <= start <= stop <= self._start + len(self._block):
                first, last = next((known for known in self.expected if known[0] <= start and stop <= known[1]), block)
                self._block = self._fetch(first, min(last, self.info.size))
                self._start = first
            return self._block[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            with errors_in_words(self.path):
                self._file.seek(start)
                content = self._file.read(stop - start)
        except OSError:  # the next attempt asks the store again, instead of an earlier list of its files
            self._file.fs.invalidate_cache()
            _source.cache_clear()
            raise
        if len(content) != stop - start:
            raise OSError(errno.EIO, f"{len(content)} of {stop - start} bytes came", self.path)
        return content


# By process: what is open does not survive a fork.
@functools.lru_cache(maxsize=_OPEN_FILES)
def _source(path: str, process: int) -> _Source:
    return _Source(path)


def _info(path: str, details: dict[str, Any]) -> RemoteInfo:
    if details.get("size") is None or details.get("partial") is False:
        raise ValueError(f"{path} cannot be read in parts: its server gives no size, or no ranges. Download it first.")
    for name in (*_VERSIONS, *_TIMES):
        if value := details.get(name):
            digest = hashlib.blake2b(str(value).strip('"').encode(), digest_size=16).digest()
            return RemoteInfo(details["size"], int.from_bytes(digest, "little") >> 1)
    raise ValueError(f"{path}: its server gives neither ETag nor Last-Modified, by which a change would be noticed.")
