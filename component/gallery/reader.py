"""A gallery on disk: the vectors of images, and which row is which image.

    gallery/
      vectors.f16     (rows, D) float16, L2-normalised; only ever appended to
      rows.sqlite     row → path, file state, digest of the content, caption, date, status; and which model

Vectors reach the disk before the rows that name them. A process that is killed between the two leaves vectors without
rows, which the next writer cuts off: only the batch in flight is lost.

Shapes: N rows, D projection width.
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import RLock
from typing import Any

import numpy as np

from component.gallery.rows import (
    ABSENT,
    BELOW,
    COLUMNS,
    DELETED,
    FORMAT,
    GalleryImage,
    below,
    connect,
    database_errors,
    image_of,
    read_about,
)

VECTORS, ROWS = "vectors.f16", "rows.sqlite"
_LATEST = 2**62  # nanoseconds since 1970: in the year 2116
_ROWS_AT_A_TIME = 65_536


class Gallery:
    """Open a gallery to read it. Several threads may share it.

    Args:
        folder: of the gallery.
        patience: seconds to wait for a process that keeps it locked.

    Attributes:
        about: settings of the gallery: `id`, `model`, `width`, …
        width: D.

    Raises:
        ValueError: there is no gallery, its files do not belong together, or another version wrote it.
        OSError: its files cannot be read, or another process keeps them locked.
    """

    def __init__(self, folder: str, patience: float = 30):
        self.folder, self._lock, self._depth = folder, RLock(), 0
        if not is_gallery(folder, patience):
            raise ValueError(
                f"{folder} is not a gallery (it has no {ROWS}). Make one with python search_image.py index …"
            )
        path = os.path.join(folder, ROWS)
        with database_errors(path):
            self._rows = connect(path, patience)
            self.about = read_about(self._rows)
        if self.about.get("format") not in (1, FORMAT):
            raise ValueError(
                f"{folder} was written by a newer version of this program. Update the program, or index the images "
                "into another folder."
            )
        self.width: int = self.about["width"]
        self._require_vectors(self.num_rows())

    def close(self) -> None:
        self._rows.close()

    def _require_vectors(self, rows: int) -> None:
        path = os.path.join(self.folder, VECTORS)
        found = os.path.getsize(path) // (2 * self.width) if os.path.isfile(path) else 0
        if found < rows:
            raise ValueError(
                f"{path} was cut short: it holds {found} vectors, but {ROWS} names {rows}. Restore it from a backup, "
                "or index the images into another folder."
            )

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within the block, all reads see the gallery as it was at the first of them. A writer waits for the end."""
        with self._lock, database_errors(os.path.join(self.folder, ROWS)):
            self._depth += 1
            try:
                if self._depth == 1:
                    self._rows.execute("BEGIN")
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")

    def _select(self, statement: str, values: list | tuple = ()) -> list[tuple]:
        with self._lock, database_errors(os.path.join(self.folder, ROWS)):
            return self._rows.execute(f"SELECT {statement}", values).fetchall()

    def num_rows(self) -> int:
        """N: all rows, those of deleted and forgotten images included."""
        if self.about["format"] == 1:
            return self.about["num_rows"]
        return self.setting("num_rows")

    def setting(self, key: str) -> Any:
        """The present value of an entry of `about`, which another process may have written; None if there is none."""
        return next((json.loads(value) for (value,) in self._select("value FROM about WHERE key = ?", [key])), None)

    def vectors(self) -> np.ndarray:
        """(N, D) float16, mapped from the file."""
        rows = self.num_rows()
        if not rows:
            return np.empty((0, self.width), np.float16)
        # Mode "c" (copy on write) never changes the file, and torch would warn about read-only arrays.
        return np.memmap(os.path.join(self.folder, VECTORS), np.float16, "c", shape=(rows, self.width))

    def rows_where(
        self, folder: str | None = None, since: float | None = None, until: float | None = None
    ) -> np.ndarray:
        """(N,) bool: the rows whose image is not deleted, is below a folder, and dates from [since, until).

        Args:
            since, until: seconds since 1970. The date of an image is the one it was taken on by its EXIF, otherwise
                that of the last change of its file.
        """
        condition, values = f"status != {DELETED}", []
        if folder is not None:
            condition += f" AND {BELOW}"
            values += below(folder)
        for moment, sign in ((since, ">="), (until, "<")):
            if moment is not None:
                condition += f" AND COALESCE(CAST(taken * 1e9 AS INTEGER), mtime_ns) {sign} ?"
                values.append(int(max(-_LATEST, min(moment * 1e9, _LATEST))))
        with self.snapshot():
            chosen = np.zeros(self.num_rows(), bool)
            chosen[[row for (row,) in self._select(f"row FROM images WHERE {condition}", values)]] = True
        return chosen

    def image(self, row: int) -> GalleryImage | None:
        """The image of a row; None if there is no such row or its image is deleted."""
        found = self._select(f"{COLUMNS} FROM images WHERE row = ? AND status != {DELETED}", [row])
        return image_of(found[0]) if found else None

    def image_with(self, digest: bytes) -> GalleryImage | None:
        """An image with this content, one that is present if there is one; None if all are deleted."""
        condition = f"digest = ? AND status != {DELETED} ORDER BY status, row LIMIT 1"
        found = self._select(f"{COLUMNS} FROM images WHERE {condition}", [digest])
        return image_of(found[0]) if found else None

    def images(self, condition: str = f"status != {DELETED}") -> Iterator[GalleryImage]:
        """All images that are not deleted, or those of another SQL condition, by row."""
        with self.snapshot():
            last = -1
            while found := self._select(
                f"{COLUMNS} FROM images WHERE row > ? AND {condition} ORDER BY row LIMIT {_ROWS_AT_A_TIME}", [last]
            ):
                yield from map(image_of, found)
                last = found[-1][0]

    def folders(self) -> dict[str, int]:
        """Folder → number of images right in it, sorted by name."""
        counts: dict[str, int] = {}
        for (path,) in self._select(f"path FROM images WHERE status != {DELETED}"):
            folder = os.fsdecode(os.path.dirname(path))
            counts[folder] = counts.get(folder, 0) + 1
        return dict(sorted(counts.items()))

    def bad_images(self) -> dict[str, str]:
        """Path → why the image cannot be decoded."""
        return {
            os.fsdecode(path): reason for path, reason in self._select("path, reason FROM bad_images ORDER BY path")
        }

    def version(self) -> tuple[int, int]:
        """A value that changes when this or another process has written."""
        ((version,),) = self._select("* FROM pragma_data_version")
        return version, self._rows.total_changes

    def counts(self) -> dict[str, int]:
        """Numbers of images: `images` (absent ones included), `absent`, `bad_images`."""
        with self.snapshot():
            images, absent, bad = (
                self._select(f"COUNT(*) FROM {rows}")[0][0]
                for rows in (f"images WHERE status != {DELETED}", f"images WHERE status = {ABSENT}", "bad_images")
            )
        return {"images": images, "absent": absent, "bad_images": bad}


def cut(vectors: np.ndarray, width: int) -> np.ndarray:
    """Vectors (n, at least `width`) → their first dimensions, (n, width), L2-normalised if any are left out."""
    if vectors.shape[1] == width:
        return vectors
    short = vectors[:, :width].astype(np.float32)
    return short / np.linalg.norm(short, axis=1, keepdims=True).clip(1e-12)


def chunks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of a gallery in fp32, (n, D), some rows at a time, each with the number of its first row."""
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        yield start, vectors[start : start + _ROWS_AT_A_TIME].astype(np.float32)


def is_gallery(folder: str, patience: float = 30) -> bool:
    """Whether the folder holds a gallery, perhaps a damaged one.

    Raises:
        ValueError: it holds vectors without rows: half a gallery.
        OSError: rows.sqlite cannot be read.
    """
    path, vectors = os.path.join(folder, ROWS), os.path.join(folder, VECTORS)
    if _has_tables(path, patience):
        return True
    if os.path.isfile(vectors) and os.path.getsize(vectors):
        raise ValueError(
            f"{folder} is half a gallery: {VECTORS} is there, but {ROWS} is missing or empty. Restore {ROWS} from a "
            "backup, or index the images into another folder."
        )
    return False


def _has_tables(path: str, patience: float) -> bool:
    """False for what a killed `create` leaves: no file, or one without tables."""
    if not os.path.isfile(path):
        return False
    try:
        with database_errors(path), closing(connect(path, patience)) as database:
            return database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() != (0,)
    except ValueError:
        return True  # damaged: opening it reports the error
