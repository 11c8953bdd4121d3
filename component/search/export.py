"""A gallery → files that other programs read."""

import itertools
import json
import os
from collections.abc import Iterator

import numpy as np

from component.gallery.reader import Gallery
from component.gallery.rows import GalleryImage
from component.ground.files import new_file
from component.pairs.parquet import import_pyarrow

_ROWS_AT_A_TIME = 65_536


def export_gallery(gallery: Gallery, path: str, kind: str) -> int:
    """Write all images that are not deleted, in one snapshot of the gallery; returns their number.

    Args:
        path: for "parquet" of the file with the columns id, path, vector (D float32, L2-normalised); for "npy" of the
            vectors (n, D) float16, next to which `<path without ending>.txt` gets the paths, one per line, escaped as
            in JSON strings.
        kind: "parquet" or "npy".

    Raises:
        ValueError: `path` is that of the paths.
        ImportError: "parquet" without pyarrow.
    """
    with gallery.snapshot():
        return {"parquet": _export_parquet, "npy": _export_npy}[kind](gallery, path)


def _export_parquet(gallery: Gallery, path: str) -> int:
    pyarrow = import_pyarrow()
    vector = pyarrow.list_(pyarrow.float32(), gallery.width)
    schema = pyarrow.schema([("id", pyarrow.int64()), ("path", pyarrow.string()), ("vector", vector)])
    count = 0
    with new_file(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for images, vectors in _chunks(gallery):
            flat = pyarrow.array(vectors.astype(np.float32).ravel())
            columns = [
                pyarrow.array([image.row for image in images], pyarrow.int64()),
                pyarrow.array([image.utf8_path for image in images], pyarrow.string()),
                pyarrow.FixedSizeListArray.from_arrays(flat, gallery.width),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(images)
    return count


def _export_npy(gallery: Gallery, path: str) -> int:
    paths = f"{os.path.splitext(path)[0]}.txt"
    if os.path.realpath(paths) == os.path.realpath(path):
        raise ValueError(f"{path} is where the paths go: give the vectors a name that ends in .npy.")
    count = gallery.counts()["images"]
    header = {"descr": "<f2", "fortran_order": False, "shape": (count, gallery.width)}
    with new_file(path, "wb") as file, new_file(paths) as names:
        np.lib.format.write_array_header_1_0(file, header)
        for images, vectors in _chunks(gallery):
            file.write(np.ascontiguousarray(vectors))
            names.writelines(json.dumps(image.utf8_path, ensure_ascii=False)[1:-1] + "\n" for image in images)
    return count


def _chunks(gallery: Gallery) -> Iterator[tuple[list[GalleryImage], np.ndarray]]:
    vectors, images = gallery.vectors(), gallery.images()
    while some := list(itertools.islice(images, _ROWS_AT_A_TIME)):
        yield some, vectors[[image.row for image in some]]
