"""What is in a file, wherever its copy lies and whenever it was written.

A shard is known by its tar headers and the last kilobyte before each of them, where the member before ends: one short
read per member finds any other image. All other files are read as a whole. Both are done once for each `FileState`.
A remote file is known by its `FileState`, and not read for this.
"""

import hashlib
import tarfile
from typing import NamedTuple

from component.ground.file_state import FileState
from component.ground.reading import open_to_read
from component.ground.remote import is_remote
from component.ground.retries import with_retries
from component.pairs.table_files import file_and_split, is_shard

ENDING_BYTES = 1024  # of the member before a header; its last block alone may be one byte and padding


class FileContent(NamedTuple):
    """Copies of a file have equal contents.

    Attributes:
        size: in bytes.
        digest: 32 hexadecimal digits.
    """

    size: int
    digest: str

    @property
    def number(self) -> int:
        """The content in 63 bits, as `FileState.number` is the state."""
        return int(hashlib.blake2b(repr(tuple(self)).encode(), digest_size=8).hexdigest(), 16) >> 1


known: dict[tuple[str, FileState], FileContent] = {}  # in this process


def content_of(path: str, state: FileState) -> FileContent:
    """The content of a file that is in a state. Raises OSError if it cannot be read."""
    if (path, state) not in known:
        if is_remote(path):
            digest = f"{state.ctime_ns:016x}{state.inode:016x}"
        else:
            digest = with_retries(lambda: _shard_digest(path)) if is_shard(path) else _whole_digest(path)
        known[path, state] = FileContent(state.size, digest)
    return known[path, state]


def _whole_digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_to_read(file_and_split(path)[0]) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _shard_digest(path: str) -> str:
    digest, offset = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb", buffering=0) as file:
        while True:
            start = max(offset - ENDING_BYTES, 0)
            file.seek(start)
            window = file.read(offset - start + tarfile.BLOCKSIZE)
            digest.update(window)
            header = window[offset - start :]
            if len(header) < tarfile.BLOCKSIZE:
                break
            try:
                size = tarfile.nti(header[124:136])  # 0 in the zeros at the end, after which another tar may come
            except tarfile.HeaderError:
                break
            if not 0 <= size < 2**62:
                break
            offset += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return digest.hexdigest()
