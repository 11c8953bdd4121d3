"""A gallery on disk: the vectors of images, and which row is which image.

    gallery/
      vectors.f16     (rows, D) float16, L2-normalised; only ever appended to
      rows.sqlite     row → path, size, time of change, digest of the content, deleted, when; and which model

Vectors are on disk before a row speaks of them. A run that is killed between the two leaves vectors that no row speaks
of: the next writer cuts them off. So nothing is lost but the batch in flight.

Shapes: N rows, D projection width.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from component.ground import file_state
from component.image.load import BadImageError, read_bytes
from component.pairs.shards import Shard

FORMAT = 1
VECTORS, ROWS = "vectors.f16", "rows.sqlite"
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (
    row INTEGER PRIMARY KEY, path BLOB NOT NULL, place BLOB, locator TEXT, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, deleted INTEGER NOT NULL DEFAULT 0, added REAL NOT NULL
);
CREATE INDEX images_by_path ON images (path);
CREATE INDEX images_by_digest ON images (digest);
CREATE TABLE bad_images (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class FileState:
    """An image as it lies on disk, without a look into it.

    Attributes:
        path: what it is called in results: absolute; of a shard's member `shard.tar/member`.
        size, mtime_ns: of the file, or of the shard that holds it (size: of the member).
        place, locator: of a member of a shard: the shard's path, and where in it the image lies; else None.
    """

    path: str
    size: int
    mtime_ns: int
    place: str | None = None
    locator: str | None = None

    def read(self) -> bytes:
        """The bytes of the image.

        Raises:
            BadImageError: as `read_bytes`; or its shard has changed.
            OSError, MemoryError: as `read_bytes`.
        """
        if self.place is not None:
            state = file_state.FileState.of(self.place)
            if (self.size, self.mtime_ns) != (state.size, state.mtime_ns):
                raise BadImageError("the shard has changed since it was indexed; index it again")
            return Shard(self.place, state).read(self.locator)
        return read_bytes(self.path)


@dataclass(frozen=True)
class GalleryImage:
    """A row of the gallery."""

    row: int
    state: FileState
    digest: bytes
    added: float
    deleted: bool

    @property
    def path(self) -> str:
        return self.state.path


class Gallery:
    """Open a gallery to read it, or as its only writer.

    Args:
        folder: of the gallery.

    Raises:
        ValueError: there is no gallery, its files do not belong together, or another version wrote it.
    """

    def __init__(self, folder: str):
        self.folder = folder
        if not Gallery.is_made(folder):
            raise ValueError(f"{folder} is no gallery (it has no {ROWS}). Make one: python search_image.py index …")
        path = os.path.join(folder, ROWS)
        self._rows = _connect(path)
        try:
            self.about = {key: json.loads(value) for key, value in self._rows.execute("SELECT * FROM about")}
            (known,) = self._rows.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM images").fetchone()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}). Index the images anew, into another folder.") from None
        if self.about.get("format") != FORMAT:
            raise ValueError(f"{folder} was written by another version of this program. Index the images anew.")
        self.width: int = self.about["width"]
        self._require_vectors(known)

    @staticmethod
    def create(folder: str, width: int, **about) -> "Gallery":
        """Make an empty gallery for vectors of `width`; `about` is kept with it, as JSON."""
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, VECTORS), "wb"):
            pass
        # One transaction: SQLite itself sees to it that a killed process leaves all of it or nothing.
        with closing(_connect(os.path.join(folder, ROWS))) as rows, _transaction(rows, folder):
            for statement in _SCHEMA.split(";"):
                rows.execute(statement)
            entries = {"format": FORMAT, "width": width, **about}
            rows.executemany(
                "INSERT INTO about VALUES (?, ?)",
                [(key, json.dumps(value, ensure_ascii=False)) for key, value in entries.items()],
            )
        return Gallery(folder)

    @staticmethod
    def is_made(folder: str) -> bool:
        """Whether there is a gallery, perhaps a damaged one, and not what a killed `create` left."""
        path = os.path.join(folder, ROWS)
        if not os.path.isfile(path):
            return False
        with closing(_connect(path)) as rows:
            try:
                return rows.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() != (0,)
            except sqlite3.DatabaseError:
                return True

    def close(self) -> None:
        self._rows.close()

    def _require_vectors(self, rows: int) -> None:
        path = os.path.join(self.folder, VECTORS)
        there = os.path.getsize(path) // (2 * self.width) if os.path.isfile(path) else 0
        if there < rows:
            raise ValueError(
                f"{path} was cut short: it holds {there} vectors, but {ROWS} speaks of {rows}. Index the images anew, "
                "into another folder."
            )

    # ---- reading ----

    def __len__(self) -> int:
        """Rows, deleted ones included: one more than the last row's number."""
        return self._rows.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM images").fetchone()[0]

    def vectors(self) -> np.ndarray:
        """(N, D) float16, mapped from the file."""
        rows = len(self)
        if not rows:
            return np.empty((0, self.width), np.float16)
        # "c": nothing is ever written, but torch warns of arrays that cannot be.
        return np.memmap(os.path.join(self.folder, VECTORS), np.float16, "c", shape=(rows, self.width))

    def living(self) -> np.ndarray:
        """(N,) bool: the rows whose image was there when the gallery was last brought up to date."""
        living = np.zeros(len(self), bool)
        living[[row for (row,) in self._rows.execute("SELECT row FROM images WHERE NOT deleted")]] = True
        return living

    def rows_where(
        self, folder: str | None = None, since: float | None = None, until: float | None = None
    ) -> np.ndarray:
        """(N,) bool: the living rows below a folder, and changed in [since, until) (seconds since 1970)."""
        condition, values = "NOT deleted", []
        if folder is not None:
            start = os.fsencode(os.path.join(os.path.abspath(folder), ""))
            # The names that begin with `start`, as a range: LIKE would take % and _ for wildcards.
            condition += " AND path >= ? AND path < ?"
            values += [start, start[:-1] + bytes([start[-1] + 1])]
        for moment, sign in ((since, ">="), (until, "<")):
            if moment is not None:
                condition += f" AND mtime_ns {sign} ?"
                values.append(int(moment * 1e9))
        chosen = np.zeros(len(self), bool)
        chosen[[row for (row,) in self._rows.execute(f"SELECT row FROM images WHERE {condition}", values)]] = True
        return chosen

    def image(self, row: int) -> GalleryImage | None:
        """The image of a row; None where there is no such row, or its image is deleted."""
        found = self._rows.execute(f"SELECT {_COLUMNS} FROM images WHERE row = ? AND NOT deleted", [row]).fetchone()
        return _image(found) if found else None

    def images(self) -> Iterator[GalleryImage]:
        """All living images, by row."""
        for found in self._rows.execute(f"SELECT {_COLUMNS} FROM images WHERE NOT deleted ORDER BY row"):
            yield _image(found)

    def bad_images(self) -> dict[str, str]:
        """Path → why it could not be read."""
        found = self._rows.execute("SELECT path, reason FROM bad_images ORDER BY path")
        return {os.fsdecode(path): reason for path, reason in found}

    def version(self) -> tuple[int, int]:
        """Another one after another process has written."""
        return self._rows.execute("PRAGMA data_version").fetchone()[0], self._rows.total_changes

    def counts(self) -> dict[str, int]:
        living, deleted, bad = (
            self._rows.execute(f"SELECT COUNT(*) FROM {part}").fetchone()[0]
            for part in ("images WHERE NOT deleted", "images WHERE deleted", "bad_images")
        )
        return {"images": living, "deleted": deleted, "bad_images": bad}

    # ---- writing; only one process may ----

    def cut_uncommitted(self) -> None:
        """Cut off the vectors that a killed run left without rows."""
        with open(os.path.join(self.folder, VECTORS), "ab") as file:
            file.truncate(len(self) * 2 * self.width)

    def rows_by_path(self) -> dict[str, GalleryImage]:
        """Path → the last image that had it, deleted or not; a living one where there is one."""
        found = self._rows.execute(f"SELECT {_COLUMNS} FROM images ORDER BY deleted DESC, row")
        return {image.path: image for image in map(_image, found)}

    def bad_states(self) -> dict[str, tuple[int, int]]:
        """Path → (size, mtime_ns) of the images that could not be read."""
        found = self._rows.execute("SELECT path, size, mtime_ns FROM bad_images")
        return {os.fsdecode(path): (size, mtime_ns) for path, size, mtime_ns in found}

    def sizes(self) -> set[int]:
        """The sizes of all images that the gallery holds or held."""
        return {size for (size,) in self._rows.execute("SELECT DISTINCT size FROM images")}

    def image_with(self, digest: bytes) -> GalleryImage | None:
        """An image with this content; a deleted one where there is one, since its row is free."""
        condition = "digest = ? ORDER BY deleted DESC LIMIT 1"
        found = self._rows.execute(f"SELECT {_COLUMNS} FROM images WHERE {condition}", [digest]).fetchone()
        return _image(found) if found else None

    def add(self, states: Sequence[FileState], digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Append (n, D) vectors and their rows; on disk when it returns."""
        first, now = len(self), time.time()
        with open(os.path.join(self.folder, VECTORS), "r+b") as file:
            file.seek(first * 2 * self.width)
            file.write(np.ascontiguousarray(vectors, np.float16))
            file.flush()
            os.fsync(file.fileno())
        rows = [
            (first + index, *_values(state), digest, 0, now)
            for index, (state, digest) in enumerate(zip(states, digests, strict=True))
        ]
        with _transaction(self._rows, self.folder):
            self._rows.executemany(f"INSERT INTO images VALUES ({', '.join('?' * 9)})", rows)
            self._forget_bad(state.path for state in states)

    def together(self):
        """A context: all that is written in it is one transaction, which costs little more than the first of many."""
        return _transaction(self._rows, self.folder)

    def move(self, states: dict[int, FileState]) -> None:
        """The images of these rows, deleted or not, now lie there."""
        with _transaction(self._rows, self.folder):
            self._rows.executemany(
                "UPDATE images SET path = ?, place = ?, locator = ?, size = ?, mtime_ns = ?, deleted = 0 "
                "WHERE row = ?",
                [(*_values(state), row) for row, state in states.items()],
            )
            self._forget_bad(state.path for state in states.values())

    def delete(self, rows: Iterable[int]) -> None:
        """Mark rows as gone; their vectors stay, for the day when the same image comes back."""
        with _transaction(self._rows, self.folder):
            self._rows.executemany("UPDATE images SET deleted = 1 WHERE row = ?", [(row,) for row in rows])

    def add_bad(self, states: Sequence[FileState], reasons: Sequence[str]) -> None:
        """Remember images that cannot be read, so that they are not tried again until they change."""
        with _transaction(self._rows, self.folder):
            self._rows.executemany(
                "INSERT OR REPLACE INTO bad_images VALUES (?, ?, ?, ?)",
                [
                    (os.fsencode(state.path), state.size, state.mtime_ns, reason)
                    for state, reason in zip(states, reasons, strict=True)
                ],
            )

    def forget_bad(self, paths: Iterable[str]) -> None:
        """Images that could not be read are gone."""
        with _transaction(self._rows, self.folder):
            self._forget_bad(paths)

    def _forget_bad(self, paths: Iterable[str]) -> None:
        self._rows.executemany("DELETE FROM bad_images WHERE path = ?", [(os.fsencode(path),) for path in paths])


_COLUMNS = "row, path, place, locator, size, mtime_ns, digest, added, deleted"


def _connect(path: str) -> sqlite3.Connection:
    # The server asks from several threads; SQLite itself takes care of that.
    return sqlite3.connect(path, timeout=30, check_same_thread=False)


@contextmanager
def _transaction(rows: sqlite3.Connection, folder: str) -> Iterator[None]:
    """All that the block writes, or nothing; inside another one, part of that. Raises OSError where it cannot be."""
    if rows.in_transaction:
        yield
        return
    try:
        with rows:
            rows.execute("BEGIN")
            yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{os.path.join(folder, ROWS)} cannot be written ({error})") from None


def _values(state: FileState) -> tuple:
    # Names are bytes, which need not be UTF-8.
    place = None if state.place is None else os.fsencode(state.place)
    return os.fsencode(state.path), place, state.locator, state.size, state.mtime_ns


def _image(found: tuple) -> GalleryImage:
    row, path, place, locator, size, mtime_ns, digest, added, deleted = found
    place = None if place is None else os.fsdecode(place)
    state = FileState(os.fsdecode(path), size, mtime_ns, place, locator)
    return GalleryImage(row, state, digest, added, bool(deleted))
