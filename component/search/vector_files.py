"""Files that hold images → one Parquet file of vectors each, for a gallery or a vector database.

    vectors/00000.tar.parquet      id, path, vector, caption, taken, digest, locator

Each is written by one restartable call, on any machine and in any order. A gallery that indexes the same shards takes
their vectors from there.

Shapes: n images of a file, D projection width.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import CLIPProcessor

from component.gallery.rows import ImageFile, digest_of
from component.ground.files import new_file
from component.ground.lock import sole_writer
from component.hub.identity import Half
from component.model import BertCLIPModel
from component.pairs.file_content import content_of
from component.pairs.keep_list import KeepList
from component.pairs.parquet import import_pyarrow, open_parquet
from component.pairs.sources import check_pair_files, needs_folder
from component.pairs.table_files import pair_files, require_own_names
from component.search.embed import COMPUTES_NAN, Loading, embed_files
from component.search.open import PRECISIONS, load_on
from component.search.scan import Sources, scan

_ABOUT = b"clip_chinese"  # key of the metadata of a file
_ROWS_AT_A_TIME = 8192


class Written(NamedTuple):
    """The vectors of one file.

    Attributes:
        path: of the Parquet file.
        images: number of vectors.
        bad_images: path → reason, of the images that cannot be decoded.
        left_out: number of images that the keep-list leaves out.
        is_new: False if the file was complete before.
    """

    path: str
    images: int
    bad_images: dict[str, str]
    left_out: int
    is_new: bool


def files_with_images(files: str | Sequence[str]) -> list[str]:
    """The shards and Parquet tables that names stand for, see `pair_files`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not hold its images; or two files have the same name, so that their vectors would too.
    """
    paths = pair_files(files)
    for path in paths:
        if os.path.isfile(path) and needs_folder(path):
            raise ValueError(
                f"{path} does not hold its images. Give .tar shards, or Parquet tables with the images inside; "
                "folders and other tables are embedded by: search_image.py index"
            )
    require_own_names(paths)
    check_pair_files(paths, None)
    return paths


@dataclass(frozen=True)
class VectorWriter:
    """Embeds all images of a shard or Parquet table, and writes their vectors into `folder`.

    Args:
        model, processor: as `load_checkpoint` returns them.
        image_half: identity of what decides the vectors, see `load_identified`.
        loading: how images are read.
        keep_list: leaves out images.
    """

    folder: str
    model: BertCLIPModel
    processor: CLIPProcessor
    image_half: Half
    loading: Loading
    keep_list: KeepList | None = None

    def write(self, source: str, on_batch: Callable[[int], None] = lambda done: None) -> Written:
        """Write the vectors of one file, unless they are there.

        Args:
            on_batch: called after each batch with the number of images in it.

        Raises:
            ValueError: another process writes the same vectors, or `source` cannot be read.
            OSError: images could not be read although the shard could. Nothing is written.
        """
        os.makedirs(self.folder, exist_ok=True)
        path = _path_of(self.folder, source)
        with sole_writer(path):
            files = list(scan(Sources([source], keep_list=self.keep_list)).files.values())
            left_out = self.keep_list.counts(source)[1] if self.keep_list else 0
            about = {"image_half": asdict(self.image_half), "content": _content(files), "source": _digest(files)}
            old, dtype = _about(path), str(self.model.dtype)
            # Images for which the model computes NaN in half precision may be good in another one.
            is_last_word = old and (old.get("dtype") == dtype or COMPUTES_NAN not in old["bad_images"].values())
            if is_last_word and about.items() <= old.items():
                return Written(path, old["images"], old["bad_images"], left_out, is_new=False)
            images, bad_images = self._write(path, files, {**about, "dtype": dtype}, on_batch)
            return Written(path, images, bad_images, left_out, is_new=True)

    def _write(
        self, path: str, files: Sequence[ImageFile], about: dict[str, Any], on_batch: Callable[[int], None]
    ) -> tuple[int, dict[str, str]]:
        pyarrow = import_pyarrow()
        schema = _schema(pyarrow, self.model.config.projection_dim)
        parts, rows, images, bad_images = [], 0, 0, {}
        with new_file(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
            batches = self.loading.batches(len(files))
            for batch in embed_files(self.model, self.processor, files, batches, self.loading):
                for name, reason in batch.unreadable.items():
                    raise OSError(f"{name} cannot be read ({reason}). Run the same command again.")
                bad_images |= {_place(files[row]): reason for row, reason in batch.images.bad.items()}
                if len(batch.images.rows):
                    parts.append(_table(pyarrow, schema, [files[row] for row in batch.images.rows], batch.images))
                    rows += len(parts[-1])
                if rows >= _ROWS_AT_A_TIME:
                    writer.write_table(pyarrow.concat_tables(parts))
                    parts, rows, images = [], 0, images + rows
                on_batch(batch.images.total)
            if parts:
                writer.write_table(pyarrow.concat_tables(parts))
            about = {**about, "images": images + rows, "bad_images": bad_images}
            writer.add_key_value_metadata({_ABOUT: json.dumps(about)})
        return images + rows, bad_images


def open_vector_writer(
    folder: str,
    model_path: str,
    loading: Loading,
    device: str | None = None,
    precision: str = "fp32",
    keep_list: KeepList | None = None,
) -> VectorWriter:
    """What writes the vectors of whole shards into a folder.

    Args:
        device, precision: see `gallery_to_write`.

    Raises:
        ValueError: there is no such model or device.
    """
    loaded = load_on(model_path, device)
    model = loaded.model.to(PRECISIONS[precision])
    return VectorWriter(folder, model, loaded.processor, loaded.identity.image, loading, keep_list)


class KnownVectors(NamedTuple):
    """Vectors (n, D) float16 of the images at `rows` of a list of files, with digests and dates as in a gallery."""

    rows: list[int]
    vectors: np.ndarray
    digests: list[bytes]
    taken: list[float | None]


def read_vectors(folder: str, shard: str, files: Sequence[ImageFile], image_half: Half) -> KnownVectors | None:
    """The vectors that `VectorWriter` wrote for images of one shard or Parquet table; None if it wrote none.

    Args:
        shard: path of the file that holds the images.
        files: some of its images.

    Raises:
        ValueError: another model made the vectors, the shard is another one than theirs, or the file is damaged.
    """
    path = _path_of(folder, shard)
    about = _about(path)
    if about is None:
        return None
    if about["image_half"] != asdict(image_half):
        raise ValueError(f"{path} was made with another model than the gallery. Embed its images with the same one.")
    pyarrow = import_pyarrow()
    with open_parquet(path) as file:
        table = file.read(["locator", "vector", "digest", "taken"])
    at = {locator: row for row, locator in enumerate(table["locator"].to_pylist())}
    rows = [row for row, file in enumerate(files) if file.locator in at]
    places = pyarrow.array([at[files[row].locator] for row in rows], pyarrow.int64())
    table = table.take(places).combine_chunks()
    digests = table["digest"].to_pylist()
    is_other = (
        about.get("content") != _content(files)  # an older version did not write it
        or any(file.locator not in at and _place(file) not in about["bad_images"] for file in files)
        or (rows and digest_of(files[rows[0]].read()) != digests[0])
    )
    if is_other:
        raise ValueError(f"{path} was made from another {os.path.basename(shard)} than {shard}. Embed it again.")
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), table["vector"].type.list_size)
    return KnownVectors(rows, vectors, digests, table["taken"].to_pylist())


def _path_of(folder: str, source: str) -> str:
    return os.path.join(folder, f"{os.path.basename(source)}.parquet")


def _place(file: ImageFile) -> str:
    """Where an image is, whatever folder its shard is in: `00000.tar/member`."""
    return os.path.basename(file.shard) + file.path[len(file.shard) :]


def _content(files: Sequence[ImageFile]) -> list | None:
    """The `FileContent` of the file that holds the images."""
    return list(content_of(files[0].shard, files[0].state)) if files else None


def _digest(files: Sequence[ImageFile]) -> str:
    """Digest of the position, size and name of each image: a keep-list may leave some out."""
    return hashlib.blake2b("\n".join(file.locator for file in files).encode(), digest_size=16).hexdigest()


def _about(path: str) -> dict[str, Any] | None:
    """The metadata of a file of vectors; None if there is none."""
    try:
        with open_parquet(path) as file:
            return json.loads(file.metadata.metadata[_ABOUT])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of vectors ({error}). Remove it.") from None


def _schema(pyarrow, width: int):
    return pyarrow.schema(
        [
            ("id", pyarrow.int64()),
            ("path", pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float16(), width)),
            ("caption", pyarrow.string()),
            ("taken", pyarrow.float64()),
            ("digest", pyarrow.binary(16)),
            ("locator", pyarrow.string()),
        ]
    )


def _table(pyarrow, schema, files: Sequence[ImageFile], images):
    paths = [_place(file) for file in files]
    taken = images.columns["taken"]
    columns = [
        pyarrow.array([_id(path) for path in paths], pyarrow.int64()),
        pyarrow.array(paths),
        pyarrow.FixedSizeListArray.from_arrays(images.columns["vectors"].ravel(), images.columns["vectors"].shape[1]),
        pyarrow.array([file.caption for file in files]),
        pyarrow.array(taken, mask=np.isnan(taken)),
        pyarrow.array([digest.tobytes() for digest in images.columns["digests"]], pyarrow.binary(16)),
        pyarrow.array([file.locator for file in files]),
    ]
    return pyarrow.table(columns, schema=schema)


def _id(path: str) -> int:
    """63 bits, the same in every run. Among 100 million images, two have the same with a probability of 1 : 1,800."""
    return int.from_bytes(hashlib.blake2b(path.encode(errors="replace"), digest_size=8).digest()) >> 1
