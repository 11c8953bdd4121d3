"""Image files → vectors, digests of the content and dates, batch by batch.

Shapes: B images of a batch, D projection width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import CLIPProcessor

from component.gallery.rows import ImageFile, digest_of
from component.ground.cores import usable_cores
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.batch import ImageBatch
from component.image.reading import BadImageError, MissingImageError
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.image_stores import expect_images
from component.pairs.shards import Shard
from component.pairs.table_files import is_shard
from component.search.shot_date import shot_date

COMPUTES_NAN = "the model computes NaN for it"  # why an image is bad; in another precision it may be good


@dataclass(frozen=True)
class Loading:
    """How images are read: `batch_size` per forward pass, by `num_workers` processes.

    num_workers None: none for few images, otherwise one per core, at most 8.
    """

    batch_size: int = 64
    num_workers: int | None = None

    def workers_for(self, images: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return min(8, usable_cores()) if images > 4 * self.batch_size else 0

    def batches(self, images: int) -> list[range]:
        """The positions of `images` images, batch by batch."""
        return [range(start, min(start + self.batch_size, images)) for start in range(0, images, self.batch_size)]


class EmbeddedBatch(NamedTuple):
    """Images that were read together.

    Attributes:
        images: vectors (B, D) float16, L2-normalised; digests (B, 16) uint8; taken (B,) float64, NaN if the date is
            not known; rows are positions in the list of files.
        vanished: number of images whose file is gone since it was listed.
        unreadable: path → what the disk said.
    """

    images: ImageBatch
    vanished: int
    unreadable: dict[str, str]


def embed_files(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    files: Sequence[ImageFile],
    batches: Sequence[Sequence[int]],
    loading: Loading,
) -> Iterator[EmbeddedBatch]:
    """Yield each of `batches`, positions in `files`, with its vectors; worker processes decode the next ones."""
    transform = ImageTransform(processor.image_processor)
    loader = DataLoader(
        range(len(files)),
        batch_sampler=batches,
        collate_fn=ToSharedMemory(partial(_load, files, transform)),
        pin_memory=model.device.type == "cuda",
        **worker_options(loading.workers_for(len(files)), loading.batch_size * transform.bytes_per_image),
    )
    for batch in loader:
        yield batch._replace(images=_with_vectors(batch.images, transform, model)) if len(batch.images.rows) else batch


def _load(files: Sequence[ImageFile], transform: ImageTransform, rows: Sequence[int]) -> EmbeddedBatch:
    """Read and decode the images of a batch, in a worker process."""
    good: list[tuple[bytes, float | None]] = []
    vanished: set[int] = set()
    unreadable: dict[int, str] = {}

    def read(row: int) -> np.ndarray:
        try:
            content = files[row].read()
            pixels = transform.read(content)
        except MissingImageError:
            vanished.add(row)
            raise
        except (OSError, MemoryError) as error:
            unreadable[row] = getattr(error, "strerror", None) or str(error)
            raise BadImageError("unreadable") from None
        good.append((digest_of(content), shot_date(content)))
        return pixels

    inside = (files[row] for row in rows if is_shard(files[row].shard or ""))
    expect_images((Shard(file.shard, file.state), file.locator) for file in inside)
    images = ImageBatch.read(rows, read)
    if good:
        digests, taken = zip(*good, strict=True)
        images.columns["digests"] = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        images.columns["taken"] = np.array(taken, np.float64)
    bad = {row: reason for row, reason in images.bad.items() if row not in vanished and row not in unreadable}
    reasons = {files[row].path: reason for row, reason in unreadable.items()}
    return EmbeddedBatch(images._replace(bad=bad), len(vanished), reasons)


@torch.inference_mode()
def _with_vectors(images: ImageBatch, transform: ImageTransform, model: BertCLIPModel) -> ImageBatch:
    """The batch with its pixels replaced by the vectors of their images."""
    pixel_values = transform.pixel_values(images.columns["pixels"], model.device, model.dtype)
    vectors = F.normalize(model.get_image_features(pixel_values).float(), dim=-1).half().cpu().numpy()
    kept = {name: np.asarray(images.columns[name]) for name in ("digests", "taken")}
    images = images._replace(columns={**kept, "vectors": vectors})
    return images.keep(np.isfinite(vectors).all(axis=1), lambda row: COMPUTES_NAN)
