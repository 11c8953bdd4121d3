"""rows.sqlite of a gallery: the tables, the two dataclasses that a row becomes, and the errors of SQLite in words."""

import functools
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from component.ground.file_state import FileState
from component.image.reading import BadImageError, read_bytes

if TYPE_CHECKING:
    from component.pairs.parquet import ParquetImages
    from component.pairs.shards import Shard

FORMAT = 2
PRESENT, DELETED, ABSENT = 0, 1, 2  # ABSENT: not found, but perhaps only because its disk is away
COLUMNS = "row, path, shard, locator, size, mtime_ns, ctime_ns, inode, caption, taken, digest, status, added"
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (
    row INTEGER PRIMARY KEY, path BLOB NOT NULL, shard BLOB, locator TEXT, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, status INTEGER NOT NULL DEFAULT 0, added REAL NOT NULL,
    ctime_ns INTEGER NOT NULL DEFAULT 0, inode INTEGER NOT NULL DEFAULT 0, caption TEXT NOT NULL DEFAULT '', taken REAL
);
CREATE INDEX images_by_path ON images (path);
CREATE INDEX images_by_digest ON images (digest);
CREATE TABLE bad_images (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL,
    ctime_ns INTEGER NOT NULL DEFAULT 0, inode INTEGER NOT NULL DEFAULT 0
);
"""
# Made by the writer, also in a gallery of an older version: what was in a shard in the state that its rows have.
SHARDS = """
CREATE TABLE IF NOT EXISTS shards (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, digest TEXT NOT NULL
)
"""
# A reader, which must not write, sees a gallery of format 1 through this view; a writer brings it up to date.
_VIEW_OF_FORMAT_1 = """
CREATE TEMP VIEW images AS SELECT row, path, place AS shard, locator, size, mtime_ns, digest, deleted AS status, added,
    0 AS ctime_ns, 0 AS inode, '' AS caption, NULL AS taken FROM main.images
"""
_FROM_FORMAT_1 = """
DROP VIEW temp.images;
ALTER TABLE images RENAME COLUMN place TO shard;
ALTER TABLE images RENAME COLUMN deleted TO status;
ALTER TABLE images ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN inode INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN caption TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN taken REAL;
ALTER TABLE bad_images ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bad_images ADD COLUMN inode INTEGER NOT NULL DEFAULT 0;
"""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image on disk, before it is read.

    Attributes:
        path: absolute, as shown in results; inside another file `shard.tar/member` or `table.parquet/group/row`.
        state: of the file, or of the one that holds it; of rows of format 1 only size and mtime_ns.
        shard, locator: of an image inside a shard or a Parquet table, the path of that file and the position in it;
            else None.
        caption: from the table or shard that names the image.
    """

    path: str
    state: FileState
    shard: str | None = None
    locator: str | None = None
    caption: str = ""

    def read(self) -> bytes:
        """The content of the image. Raises BadImageError (also if `shard` has changed), OSError or MemoryError."""
        if self.shard is not None:
            state = FileState.of(self.shard)
            if not is_same_state(state, self.state):
                raise BadImageError("changed", f"{self.shard} has changed since it was indexed; index it again")
            return _store(self.shard, state).read(self.locator)
        return read_bytes(self.path)

    def is_unchanged(self, known: "ImageFile") -> bool:
        """Whether this is the file that was `known`, judged without reading it."""
        same_source = (self.shard, self.locator) == (known.shard, known.locator)
        return same_source and is_same_state(self.state, known.state)


@functools.lru_cache(maxsize=64)  # finding the column of images opens the Parquet file
def _store(path: str, state: FileState) -> "Shard | ParquetImages":
    # These import pandas, which a query does not need.
    from component.pairs.parquet import ParquetImages, image_column
    from component.pairs.shards import Shard
    from component.pairs.table_files import Kind, kind_of

    is_parquet = kind_of(path) is Kind.PARQUET
    return ParquetImages(path, state, image_column(path)) if is_parquet else Shard(path, state)


def is_same_state(found: FileState, known: FileState) -> bool:
    """Whether two states of a file are equal, as far as `known` has been recorded."""
    return known == (found if known.ctime_ns else found._replace(ctime_ns=0, inode=0))


def digest_of(content: bytes) -> bytes:
    """Digest of the content of an image."""
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """A row of the gallery.

    Attributes:
        digest: of the content, see `digest_of`.
        taken: when the photo was taken by its EXIF, in seconds since 1970; None where it does not say.
        added: when the row was added, in seconds since 1970.
        status: PRESENT, DELETED or ABSENT.
    """

    row: int
    file: ImageFile
    digest: bytes
    taken: float | None
    added: float
    status: int

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def utf8_path(self) -> str:
        r"""The path for a file of text: a byte that is not UTF-8 becomes \udcxx."""
        return self.path.encode(errors="backslashreplace").decode()


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """Open or make rows.sqlite; several threads may use the connection one after the other."""
    return sqlite3.connect(path, timeout=timeout, check_same_thread=False, isolation_level=None)


@contextmanager
def database_errors(path: str) -> Iterator[None]:
    """Turn an error of SQLite into OSError where the machine is at fault, and into ValueError where the file is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such" in str(error):  # a table or a column
            raise ValueError(_damaged(path, error)) from None
        raise OSError(f"{path} cannot be used at the moment ({error}).") from None
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        raise ValueError(_damaged(path, error)) from None


def _damaged(path: str, error: Exception) -> str:
    return f"{path} is damaged ({error}). Restore it from a backup, or index the images into another folder."


def read_about(database: sqlite3.Connection) -> dict:
    """The settings of the gallery. After this call `images` has the columns of today's format."""
    about = {key: json.loads(value) for key, value in database.execute("SELECT * FROM about")}
    if about.get("format") == 1:
        database.execute(_VIEW_OF_FORMAT_1)
        (about["num_rows"],) = database.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM images").fetchone()
    return about


def write_about(database: sqlite3.Connection, **about) -> None:
    entries = [(key, json.dumps(value, ensure_ascii=False)) for key, value in about.items()]
    database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", entries)


def create_tables(database: sqlite3.Connection, **about) -> None:
    """Run this inside a transaction."""
    _execute_all(database, SCHEMA)
    write_about(database, format=FORMAT, id=secrets.token_hex(8), num_rows=0, **about)


def bring_up_to_date(database: sqlite3.Connection, about: dict) -> None:
    """Turn tables of format 1 into today's. Run this inside a transaction, after `read_about`."""
    _execute_all(database, _FROM_FORMAT_1)
    write_about(database, format=FORMAT, id=secrets.token_hex(8), num_rows=about["num_rows"])


def _execute_all(database: sqlite3.Connection, script: str) -> None:
    # Not `executescript`, which commits what the transaction has done so far.
    for statement in script.split(";"):
        database.execute(statement)


BELOW = "path >= ? AND path < ?"  # with the values of `below`; LIKE would take % and _ for wildcards


def below(folder: str) -> list[bytes]:
    """The range of the paths below a folder or shard."""
    start = os.fsencode(os.path.join(os.path.abspath(folder), ""))
    return [start, start[:-1] + bytes([start[-1] + 1])]


def values_of(file: ImageFile) -> tuple:
    """Values of path, shard, locator, size, mtime_ns, ctime_ns, inode, caption. Names are bytes: not all are UTF-8."""
    shard = None if file.shard is None else os.fsencode(file.shard)
    caption = file.caption.encode(errors="replace").decode()
    return os.fsencode(file.path), shard, file.locator, *signed(file.state), caption


def signed(state: FileState) -> list[int]:
    """The numbers of a state for SQLite, whose integers are signed: some file systems have inodes of 64 bits."""
    return [value if value < 2**63 else value - 2**64 for value in state]


def image_of(found: tuple) -> GalleryImage:
    """A tuple of COLUMNS as a dataclass."""
    row, path, shard, locator, size, mtime_ns, ctime_ns, inode, caption, taken, digest, status, added = found
    state = (size, mtime_ns, ctime_ns, inode)
    shard, state = (None, state_of(*state)) if shard is None else _shard_and_state(shard, *state)
    file = ImageFile(os.fsdecode(path), state, shard, locator, caption)
    return GalleryImage(row, file, digest, taken, added, status)


def state_of(size: int, mtime_ns: int, ctime_ns: int, inode: int) -> FileState:
    """The state that `signed` made numbers of."""
    return FileState(size, mtime_ns, ctime_ns, inode % 2**64)


@functools.lru_cache(maxsize=1024)  # one object for the thousands of images in a shard
def _shard_and_state(shard: bytes, *state: int) -> tuple[str, FileState]:
    return os.fsdecode(shard), state_of(*state)
