"""Vectors of images that exist already, as the image side of a table: no image is read and no tower computes.

They come from a gallery, a .npy or .npz, or a folder of clip-retrieval (img_emb/*.npy and metadata/*.parquet). A row
of the table finds its vector by its file name. Shapes: n vectors, D their width.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from component.gallery.reader import VECTORS, Gallery, is_gallery
from component.ground.plain_text import one_line
from component.hub.identity import ModelIdentity
from component.image.batch import ImageBatch
from component.pairs.image_source import GoodRows
from component.pairs.pair_table import PairTable
from component.pairs.paths import normal_name
from component.pairs.table import read_table
from component.pairs.text_file import open_text

ORDER = "order"  # of image_vector_ids: vector i belongs to row i
NO_VECTOR = -1
_SAMPLED = 1000  # vectors whose values tell two files apart


class ImageVectors:
    """(n, D) vectors in one or more files, which are mapped into memory.

    Args:
        file: what messages call the whole.
        sources: each returns the (n_i, D) floats of one file. A pickled `ImageVectors` holds these alone.

    Raises:
        ValueError: a file cannot be read, or does not hold vectors of one width.
    """

    def __init__(self, file: str, sources: Sequence[Callable[[], np.ndarray]]):
        self.file, self._sources = file, sources
        try:
            self._arrays = [source() for source in sources]
        except MemoryError:
            raise
        except Exception as error:  # numpy, zipfile and zlib raise a class of their own for each kind of damage
            raise ValueError(f"{file} cannot be read as vectors: {one_line(error) or type(error).__name__}") from None
        for array in self._arrays:
            if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1:] != self._arrays[0].shape[1:]:
                raise ValueError(
                    f"{file} has an array of shape {array.shape} and type {array.dtype}; expected floats, one row for "
                    "each image, all of one width."
                )
        self._starts = np.cumsum([0, *map(len, self._arrays)])
        self.width: int = self._arrays[0].shape[1]

    def __reduce__(self):
        return ImageVectors, (self.file, self._sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(m,) positions → (m, D) fp32."""
        found = np.empty((len(positions), self.width), np.float32)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            found[inside] = self._arrays[number][positions[inside] - self._starts[number]]
        return torch.from_numpy(found)

    @property
    def identity(self) -> str:
        """Name, size and a digest of some of the vectors."""
        positions = np.linspace(0, max(len(self) - 1, 0), min(_SAMPLED, len(self))).astype(np.int64)
        digest = hashlib.blake2b(self[positions].numpy().tobytes(), digest_size=6).hexdigest()
        return f"{os.path.basename(self.file)}, {len(self):,} vectors of {self.width} ({digest})"


def open_vectors(path: str) -> ImageVectors:
    """Map the vectors of a gallery, a .npy or .npz, or a folder of clip-retrieval. Raises ValueError."""
    try:
        return ImageVectors(path, _sources(path))
    except ValueError as error:
        raise ValueError(f"`image_vectors`: {error}") from None


def _sources(path: str) -> list[Callable[[], np.ndarray]]:
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise ValueError(f"{path}: no such file or folder.")
        return [partial(_load, path)]
    with _gallery_in(path) as gallery:
        if gallery is None:
            return [partial(_load, file) for file, _ in _clip_retrieval(path)]
        shape = gallery.num_rows(), gallery.width
    if not shape[0]:
        raise ValueError(f"the gallery {path} is empty.")
    return [partial(np.memmap, os.path.join(path, VECTORS), np.float16, "r", shape=shape)]


def gallery_fingerprint(path: str) -> ModelIdentity | None:
    """The model that made a gallery; None for other vectors, and for a gallery of an earlier version."""
    with _gallery_in(path) as gallery:
        found = None if gallery is None else gallery.about["fingerprint"]
    return ModelIdentity.from_dict(found) if isinstance(found, dict) else None


@contextmanager
def _gallery_in(path: str) -> Iterator[Gallery | None]:
    if not (os.path.isdir(path) and is_gallery(path)):
        yield None
        return
    with closing(Gallery(path)) as gallery:
        yield gallery


def _load(path: str) -> np.ndarray:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    arrays = {name: found[name] for name in found.files}
    return _only(arrays, path, "of two dimensions", lambda array: array.ndim == 2)


def _only(arrays: dict[str, np.ndarray], path: str, what: str, is_it: Callable[[np.ndarray], bool]) -> np.ndarray:
    names = [name for name, array in arrays.items() if is_it(array)]
    if len(names) != 1:
        raise ValueError(f"{path} holds {', '.join(arrays)}; expected one array {what}, not {len(names)}")
    return arrays[names[0]]


def _clip_retrieval(path: str) -> list[tuple[str, str]]:
    """The files of vectors and of metadata, pair by pair. Raises ValueError if one lacks the other."""
    pairs = []
    for file in sorted(glob.glob(os.path.join(glob.escape(path), "img_emb", "*.npy")), key=_by_number):
        number = re.search(r"(\d*)\.npy$", file)[1]
        metadata = os.path.join(path, "metadata", f"metadata_{number}.parquet")
        pairs.append((file, metadata))
    if not pairs:
        raise ValueError(f"{path} is neither a gallery nor a folder of clip-retrieval with img_emb/img_emb_0.npy.")
    return pairs


def _by_number(path: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def vector_names(path: str, ids: str | None) -> tuple[list[str], np.ndarray]:
    """The name of the image of each vector, and the positions (n,) of these vectors.

    Args:
        ids: text file with one name per line, or a table with a column `filename`; None: the names that the vectors
            come with.

    Raises:
        ValueError: there are no names, or another number of them than vectors.
    """
    if ids is not None:
        names = _read_names(ids)
    elif os.path.isdir(path):
        with _gallery_in(path) as gallery:
            if gallery is not None:
                images = [(image.path, image.row) for image in gallery.images()]
                return [name for name, _ in images], np.array([row for _, row in images], np.int64)
        names = _names_of_clip_retrieval(path)
    else:
        names = _names_of_file(path)
    _require_count(ids or path, names, path, len(open_vectors(path)))
    return names, np.arange(len(names))


def _names_of_clip_retrieval(path: str) -> list[str]:
    names = []
    for file, metadata in _clip_retrieval(path):
        some = _read_names(metadata)
        _require_count(metadata, some, file, len(_load(file)))
        names += some
    return names


def _names_of_file(path: str) -> list[str]:
    """Those inside an .npz, or of the .txt next to a .npy."""
    beside = f"{os.path.splitext(path)[0]}.txt"
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        if any(array.ndim == 1 for array in arrays.values()):
            return _only(arrays, path, "of file names", lambda array: array.ndim == 1).astype(str).tolist()
    elif os.path.isfile(beside):
        return _read_names(beside)
    raise ValueError(
        f"{path} does not say which vector belongs to which image. Set image_vector_ids to a text file with "
        "one file name per line or to a table with a column filename, in the order of the vectors; or to "
        f"{ORDER}, if vector i belongs to row i of train_file."
    )


def _require_count(ids: str, names: list[str], path: str, vectors: int) -> None:
    if len(names) != vectors:
        raise ValueError(f"{ids} has {len(names):,} file names, but {path} has {vectors:,} vectors.")


def _read_names(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file.")
    if not path.lower().endswith(".txt"):
        return [name for chunk in read_table(path, ("filename",), only_required=True) for name in chunk["filename"]]
    with open_text(path) as file:
        lines = file.read().removesuffix("\n").split("\n")
    return [_unescaped(line.removesuffix("\r")) for line in lines]


def _unescaped(line: str) -> str:
    """A name as `search_image.py export` writes it, escaped as in JSON strings."""
    try:
        return json.loads(f'"{line}"') if "\\" in line else line
    except ValueError:
        return line


class VectorImages:
    """The images of a table as vectors: image_embeds (n, D) fp32. An `ImageSource`.

    A row whose file name has no vector is left out from the start; one whose vector is NaN, infinite or zero when it
    is loaded.

    Args:
        ids, image_path: see `vector_names`; names below image_path are also known by their names relative to it.

    Raises:
        ValueError: no row has a vector, a name occurs twice, or the order is not that of the table.
    """

    def __init__(self, table: PairTable, vectors: ImageVectors, ids: str | None, image_path: str | None):
        self._table, self._vectors, self._numbers = table, vectors, table.image_numbers
        self.bytes_per_image = 4 * vectors.width
        if ids == ORDER:
            _require_same_order(table, vectors)
            self._positions, self._numbers = np.arange(len(vectors)), np.arange(len(vectors))
        else:
            names, positions = vector_names(vectors.file, ids)
            self._positions = _find(table, names, positions, vectors.file, image_path)
        without = np.flatnonzero(self._positions[self._numbers] == NO_VECTOR)
        self.rows = GoodRows(len(table), without)
        self.bad = {row: f"{table.filename(row)}: {vectors.file} has no vector of it" for row in without.tolist()}

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> ImageBatch:
        rows = np.asarray(rows, np.int64)
        vectors = self._vectors[self._positions[self._numbers[rows]]]
        lengths = vectors.norm(dim=1)
        return ImageBatch(rows, {"image_embeds": vectors}, {}).keep(
            (lengths.isfinite() & (lengths > 0)).numpy(),
            lambda row: f"{self._table.filename(row)}: its vector is zero, or not of finite numbers",
        )


def _require_same_order(table: PairTable, vectors: ImageVectors) -> None:
    if table.num_empty_texts:
        raise ValueError(
            f"`image_vector_ids` is {ORDER}, but {table.num_empty_texts:,} rows of {table.file} have no text and are "
            "left out: give the file names of the vectors instead."
        )
    if len(table) != len(vectors):
        raise ValueError(
            f"`image_vector_ids` is {ORDER}, but {table.file} has {len(table):,} rows and {vectors.file} "
            f"{len(vectors):,} vectors."
        )


def _find(table: PairTable, names: list[str], positions: np.ndarray, file: str, image_path: str | None) -> np.ndarray:
    """(images,) position of each image's vector, NO_VECTOR where no name is that of the image."""
    names = list(map(normal_name, names))
    repeated = pd.Series(names, dtype=object)[lambda series: series.duplicated()]
    if len(repeated):
        raise ValueError(f"{file} has more than one vector of {repeated.iloc[0]} ({len(repeated):,} such names).")
    root = os.path.join(os.path.abspath(image_path), "") if image_path else None
    below = [index for index, name in enumerate(names) if root and name.startswith(root)]
    known = np.array([*names, *(names[index][len(root) :] for index in below)], object)
    positions = np.concatenate([positions, positions[below]])
    ids, first = np.unique(pd.util.hash_array(known, categorize=False), return_index=True)
    wanted = table.image_ids[table.first_rows]
    slots = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    found = np.where(ids[slots] == wanted, positions[first[slots]], NO_VECTOR)
    if (found == NO_VECTOR).all():
        raise ValueError(
            f"{file} has no vector of any image in {table.file}: its first name is {names[0]}, the first of the table "
            f"is {table.filename(0)}. Names must be equal; absolute ones may also lie below image_path."
        )
    return found
