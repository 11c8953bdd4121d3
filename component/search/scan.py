"""Folders, tables and shards → the images in them; no image is read."""

import fnmatch
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from component.gallery.reader import ROWS, VECTORS
from component.gallery.rows import ImageFile
from component.ground.file_state import FileState
from component.ground.reading import absolute, is_file
from component.image.folder import IMAGE_ENDINGS, PassedOver, is_hidden, is_image_name
from component.pairs.image_stores import ImageFolder
from component.pairs.keep_list import KeepList
from component.pairs.paths import image_file
from component.pairs.sources import needs_folder, read_pair_files
from component.pairs.table_files import expand, is_shard

# What NAS devices and file systems keep next to the images: thumbnails, and what was deleted.
DEFAULT_EXCLUDES = ("@eaDir", "#recycle", ".Trash*", "lost+found")


@dataclass(frozen=True)
class Sources:
    """Where images come from.

    Attributes:
        paths: folders (with everything below them, except hidden folders, folders behind symbolic links, and
            galleries), image files, tables of pairs (CSV or Parquet), and WebDataset shards; `{00..99}` and `*` mean
            what they mean in a shell.
        image_path: the folder that the file names in tables are relative to.
        exclude: patterns such as `*.tmp.jpg` of file and folder names to leave out, besides DEFAULT_EXCLUDES; a
            pattern with a slash is compared with the path relative to the source.
        columns: of tables, see `read_table`.
        keep_list: leaves out pairs of the tables and shards.
        vectors: folder of a `VectorWriter`, where the vectors of images in shards may be already.

    Raises:
        ValueError: there is no such folder of vectors, and all images would be embedded again.
    """

    paths: Sequence[str]
    image_path: str | None = None
    exclude: Sequence[str] = ()
    columns: Mapping[str, str] | None = None
    keep_list: KeepList | None = None
    vectors: str | None = None

    def __post_init__(self):
        if self.vectors is not None and not os.path.isdir(self.vectors):
            raise ValueError(f"{self.vectors} is not a folder of vectors; search_image.py embed --vectors makes one.")


@dataclass(frozen=True)
class Root:
    """Below which path a source looks; `is_complete` if it lists all images there (a table names only some)."""

    path: str
    is_complete: bool

    def is_above(self, path: str) -> bool:
        return path == self.path or path.startswith(os.path.join(self.path, ""))


@dataclass
class Found:
    """What a scan found.

    Attributes:
        files: path → image, in order.
        roots: of the sources that were there.
        missing: roots of the sources that were not, and a missing image_path.
        unreadable: path of a folder or file → reason.
        passed_over: kind of thing → number of those that were left out.
        other_files: files that do not have the name of an image.
    """

    files: dict[str, ImageFile] = field(default_factory=dict)
    roots: list[Root] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    other_files: PassedOver = field(default_factory=PassedOver)

    def add(self, path: str, caption: str = "") -> bool:
        """Add an image file, and return whether it exists."""
        if path in self.files:
            return True
        try:
            state = FileState.of(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self.unreadable[path] = error.strerror
        else:
            self.files[path] = ImageFile(path, state, caption=caption)
        return True


def scan(sources: Sources) -> Found:
    """Find every image once, in order.

    Raises:
        ValueError: a source is not of a kind that `Sources` lists, a table or shard cannot be read, or the keep-list
            is not of them.
    """
    found = Found()
    for source in expand(sources.paths):
        path = absolute(source)
        if os.path.isdir(source):
            found.roots.append(Root(path, is_complete=True))
            _scan_folder(path, (*DEFAULT_EXCLUDES, *sources.exclude), found)
        elif not is_file(source):
            found.missing.append(path)
        elif is_shard(source) or source.lower().endswith((".csv", ".csv.gz", ".parquet")):
            if not needs_folder(source, sources.columns):  # the file holds its images
                found.roots.append(Root(path, is_complete=True))
            elif sources.image_path is None:
                raise ValueError(f"{source} is a table: give the folder of its images with --image_path.")
            elif os.path.isdir(sources.image_path):
                found.roots.append(Root(os.path.abspath(sources.image_path), is_complete=False))
            else:
                found.missing.append(os.path.abspath(sources.image_path))
                continue
            _scan_pairs(source, sources, found)
        elif is_image_name(source):
            found.roots.append(Root(path, is_complete=True))
            found.add(path)
        else:
            raise ValueError(
                f"{source} is not a folder, a table, a shard or an image ({', '.join(IMAGE_ENDINGS)}). If it is an "
                "image in another format, convert it to JPEG."
            )
    return found


def _scan_folder(root: str, exclude: Sequence[str], found: Found) -> None:
    def remember(error: OSError) -> None:
        found.unreadable[error.filename] = error.strerror

    for parent, folders, names in os.walk(root, onerror=remember):
        entered = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if pattern := _first_match(root, path, exclude):
                found.passed_over[f"folders {pattern}"] += 1
            elif is_hidden(name):
                found.passed_over["hidden folders"] += 1
            elif os.path.islink(path):
                found.passed_over["symbolic links to folders"] += 1
            elif os.path.isfile(os.path.join(path, ROWS)) and os.path.isfile(os.path.join(path, VECTORS)):
                found.passed_over["galleries"] += 1
            else:
                entered.append(name)
        folders[:] = entered
        for name in sorted(names):
            path = os.path.join(parent, name)
            if is_hidden(name):
                continue
            if pattern := _first_match(root, path, exclude):
                found.passed_over[f"files {pattern}"] += 1
            elif not is_image_name(name):
                found.other_files.add(path)
            elif os.path.isfile(path) or not os.path.exists(path):  # neither a folder nor a pipe
                found.add(path)


def _first_match(root: str, path: str, patterns: Sequence[str]) -> str | None:
    name, inside = os.path.basename(path), os.path.relpath(path, root)
    return next((p for p in patterns if fnmatch.fnmatch(inside if "/" in p else name, p.rstrip("/"))), None)


def _scan_pairs(file: str, sources: Sources, found: Found) -> None:
    if sources.keep_list:
        found.passed_over["pairs by the keep-list"] += sources.keep_list.counts(file)[1]
    missing = set()
    pairs = read_pair_files(file, sources.image_path, sources.columns, keep_list=sources.keep_list)
    for store, chunk in pairs:
        for locator, caption in zip(chunk["filename"].tolist(), chunk["text"].tolist(), strict=True):
            if not isinstance(store, ImageFolder):
                shard = absolute(store.path)
                path = os.path.join(shard, store.filename(locator)[len(store.path) + 1 :])
                found.files.setdefault(path, ImageFile(path, store.state, shard, locator, caption))
                continue
            try:
                path = os.path.abspath(image_file(store.path, locator))
            except ValueError:  # a name that leads out of the folder
                missing.add(locator)
                continue
            if not found.add(path, caption):
                missing.add(path)
    if missing:
        found.passed_over["files named by tables, but missing"] += len(missing)
