"""The one process that writes a gallery: adding, moving, marking and forgetting rows.

Shapes: B images, D projection width.
"""

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, contextmanager, suppress

import numpy as np

from component.gallery.reader import ROWS, VECTORS, Gallery, cut, is_gallery
from component.gallery.rows import (
    ABSENT,
    BELOW,
    COLUMNS,
    DELETED,
    PRESENT,
    SHARDS,
    GalleryImage,
    ImageFile,
    below,
    bring_up_to_date,
    connect,
    create_tables,
    database_errors,
    image_of,
    read_about,
    signed,
    state_of,
    values_of,
    write_about,
)
from component.ground.file_state import FileState
from component.pairs.file_content import FileContent
from component.search.approximate import APPROXIMATE_INDEX
from component.search.thumbnails import thumbnail_path

_PATIENCE = 600  # seconds, for readers to end their snapshots: an export of millions takes minutes


class GalleryWriter(Gallery):
    """Open a gallery as its only writer. Brings one of format 1 up to date, and cuts off vectors without rows."""

    def __init__(self, folder: str):
        super().__init__(folder, _PATIENCE)
        if self.about["format"] == 1:
            with self.transaction():
                bring_up_to_date(self._rows, self.about)
            with database_errors(os.path.join(folder, ROWS)):
                self.about = read_about(self._rows)
        with self.transaction():
            self._rows.execute(SHARDS)
        with open(os.path.join(folder, VECTORS), "ab") as file:
            file.truncate(self.num_rows() * 2 * self.width)

    @classmethod
    def create(cls, folder: str, width: int, **about) -> "GalleryWriter":
        """Make an empty gallery for vectors of `width`; `about` is kept with it, as JSON.

        Raises ValueError if the folder holds half a gallery, or files of someone else.
        """
        from component.search.scan import DEFAULT_EXCLUDES  # imports pandas, which a query does not need

        assert not is_gallery(folder)
        os.makedirs(folder, exist_ok=True)
        # Among images, a gallery would hide them: when the folder above is indexed, galleries are passed over.
        # What a killed `create` left, locks, hidden files and what a file system keeps do not count.
        names = set(os.listdir(folder)) - {*DEFAULT_EXCLUDES}
        if others := [name for name in names if not name.startswith((".", "_", VECTORS, ROWS))]:
            raise ValueError(
                f"{folder} is not a gallery, and holds other files, such as {min(others)}. Give a new or empty folder."
            )
        path = os.path.join(folder, ROWS)
        with (
            open(os.path.join(folder, VECTORS), "ab"),
            database_errors(path),
            closing(connect(path, _PATIENCE)) as database,
        ):
            # One transaction, so that a killed process leaves all or nothing.
            database.execute("BEGIN IMMEDIATE")
            create_tables(database, width=width, **about)
            database.execute("COMMIT")
        return cls(folder)

    def note(self, **about) -> None:
        """Keep further settings with the gallery."""
        with self.transaction():
            write_about(self._rows, **about)
        self.about |= about

    def take_texts_of(self, **about) -> None:
        """Keep the settings of a model with another text half; what was measured with the former one is dropped."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, APPROXIMATE_INDEX))
        self.note(**about, absence_threshold=None, absence_images=-1)

    @contextmanager
    def transaction(self):
        """Write all of the block or nothing; many writes in one transaction cost little more than one."""
        with self._lock, database_errors(os.path.join(self.folder, ROWS)):
            if self._rows.in_transaction:
                yield
                return
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._rows.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")
                raise

    def images_by_path(self) -> dict[str, GalleryImage]:
        """Path → the last image that had it; one that is not deleted if there is one."""
        deleted = self.images(f"status = {DELETED}")
        return {image.path: image for image in itertools.chain(deleted, self.images())}

    def shard_contents(self) -> dict[tuple[str, FileState], FileContent]:
        """(path, state) → content, of the shards and Parquet tables as they were when they were indexed last."""
        found = self._select("path, size, mtime_ns, ctime_ns, inode, digest FROM shards")
        return {(os.fsdecode(path), state_of(*state)): FileContent(state[0], digest) for path, *state, digest in found}

    def keep_contents(self, contents: dict[tuple[str, FileState], FileContent]) -> None:
        """Keep what `shard_contents` returns."""
        with self.transaction():
            self._rows.executemany(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?)",
                [(os.fsencode(path), *signed(state), content.digest) for (path, state), content in contents.items()],
            )

    def bad_states(self) -> dict[str, FileState]:
        """Path → state of the images that cannot be decoded."""
        found = self._select("path, size, mtime_ns, ctime_ns, inode FROM bad_images")
        return {os.fsdecode(path): state_of(*state) for path, *state in found}

    def sizes(self) -> set[int]:
        """The file sizes of all images that the gallery holds or held."""
        return {size for (size,) in self._select("DISTINCT size FROM images")}

    def image_to_take_over(self, digest: bytes) -> GalleryImage | None:
        """An image with this content: a deleted one first, then an absent one, since their rows are free."""
        order = f"status = {DELETED} DESC, status = {ABSENT} DESC, row"
        found = self._select(f"{COLUMNS} FROM images WHERE digest = ? ORDER BY {order} LIMIT 1", [digest])
        return image_of(found[0]) if found else None

    def add(
        self, files: Sequence[ImageFile], digests: Sequence[bytes], taken: Sequence[float | None], vectors: np.ndarray
    ) -> None:
        """Append (B, at least D) vectors, of which D dimensions are kept, and their rows; both are on disk then."""
        first, now = self.num_rows(), time.time()
        with open(os.path.join(self.folder, VECTORS), "r+b") as file:
            file.seek(first * 2 * self.width)
            file.write(np.ascontiguousarray(cut(vectors, self.width), np.float16))
            file.flush()
            os.fsync(file.fileno())
        rows = [
            (first + index, *values_of(file), moment, digest, PRESENT, now)
            for index, (file, digest, moment) in enumerate(zip(files, digests, taken, strict=True))
        ]
        with self.transaction():
            self._rows.executemany(f"INSERT INTO images ({COLUMNS}) VALUES ({', '.join('?' * 13)})", rows)
            write_about(self._rows, num_rows=first + len(rows))
            self._forget_bad(file.path for file in files)

    def move(self, files: dict[int, ImageFile]) -> None:
        """The images of these rows, whatever their status, are now present as these files."""
        with self.transaction():
            self._rows.executemany(
                "UPDATE images SET path = ?, shard = ?, locator = ?, size = ?, mtime_ns = ?, ctime_ns = ?, inode = ?, "
                f"caption = ?, status = {PRESENT} WHERE row = ?",
                [(*values_of(file), row) for row, file in files.items()],
            )
            self._forget_bad(file.path for file in files.values())

    def mark(self, rows: Iterable[int], status: int) -> None:
        """Set the status of rows. Vectors of deleted rows stay, for the day when the same image comes back."""
        with self.transaction():
            self._rows.executemany("UPDATE images SET status = ? WHERE row = ?", [(status, row) for row in rows])

    def add_bad(self, files: Sequence[ImageFile], reasons: Sequence[str]) -> None:
        """Remember images that cannot be decoded, so that they are not tried again until they change."""
        with self.transaction():
            self._rows.executemany(
                "INSERT OR REPLACE INTO bad_images (path, size, mtime_ns, ctime_ns, inode, reason) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (os.fsencode(file.path), *signed(file.state), reason)
                    for file, reason in zip(files, reasons, strict=True)
                ],
            )

    def forget_bad(self, paths: Iterable[str]) -> None:
        """Images that could not be decoded are gone."""
        with self.transaction():
            self._forget_bad(paths)

    def _forget_bad(self, paths: Iterable[str]) -> None:
        self._rows.executemany("DELETE FROM bad_images WHERE path = ?", [(os.fsencode(path),) for path in paths])

    def forget(self, folder: str) -> int:
        """Remove all that the gallery knows of the images below a folder or shard; returns their number.

        Rows, thumbnails and the faiss index go; vectors are overwritten by zeros. The image files are not touched.
        """
        span = below(folder)
        found = self._select(f"row, digest, status FROM images WHERE {BELOW}", span)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, APPROXIMATE_INDEX))
        # Zeros first: if the process is killed in between, the rows still exist, and the command can be repeated.
        with open(os.path.join(self.folder, VECTORS), "r+b") as file:
            for row, _, _ in found:
                file.seek(row * 2 * self.width)
                file.write(bytes(2 * self.width))
            file.flush()
            os.fsync(file.fileno())
        with self.transaction():
            self._rows.execute("PRAGMA secure_delete = ON")
            for table in ("images", "bad_images", "shards"):
                self._rows.execute(f"DELETE FROM {table} WHERE {BELOW}", span)
            self._rows.execute("DELETE FROM shards WHERE path = ?", [os.fsencode(os.path.abspath(folder))])
        for digest in {digest for _, digest, _ in found}:
            if not self._select("1 FROM images WHERE digest = ? LIMIT 1", [digest]):
                with suppress(FileNotFoundError):
                    os.unlink(thumbnail_path(self.folder, digest))
        return sum(status != DELETED for _, _, status in found)
