"""Bring a gallery up to date with the images on disk: only what is new or changed is read.

Shapes: B images, D projection width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import CLIPProcessor

from component.gallery.rows import ImageFile, digest_of
from component.ground.cores import usable_cores
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.batch import ImageBatch
from component.image.load import BadImageError, MissingImageError
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.keep_list import KeepList
from component.search.presence import absence_threshold
from component.search.scan import scan
from component.search.settle import IndexReport, settle
from component.search.shot_date import shot_date
from component.search.writer import GalleryWriter


@dataclass(frozen=True)
class Sources:
    """Where images come from; see `scan`."""

    paths: Sequence[str]
    image_path: str | None = None
    exclude: Sequence[str] = ()
    columns: Mapping[str, str] | None = None
    keep_list: KeepList | None = None


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


@dataclass(frozen=True)
class Progress:
    """Callbacks of the first process: `on_total` with the number of images to embed, `on_batch` with those done."""

    on_total: Callable[[int], None] = lambda total: None
    on_batch: Callable[[int], None] = lambda done: None


def update(
    gallery: GalleryWriter | None,
    model: BertCLIPModel,
    processor: CLIPProcessor,
    sources: Sources,
    loading: Loading = Loading(),
    progress: Progress = Progress(),
) -> IndexReport:
    """Scan the sources, and add, move and mark rows until the gallery describes what is there.

    Each batch is on disk before the next begins. With several processes each embeds a share, and the first writes.

    Args:
        gallery: of `gallery_to_write`; None in all processes but the first.
    """
    state, report = PartialState(), IndexReport()
    new: list[ImageFile] = []
    if state.is_main_process:
        found = scan(sources.paths, sources.image_path, sources.exclude, sources.columns, sources.keep_list)
        new = settle(gallery, found, report)
        progress.on_total(len(new))
    shared = [new]
    broadcast_object_list(shared)
    (new,) = shared
    for batch in _embedded(model, processor, new, loading):
        if not state.is_main_process:
            continue
        images = batch.images
        if len(images.rows):
            digests = [digest.tobytes() for digest in images.columns["digests"]]
            taken = [None if np.isnan(moment) else moment.item() for moment in images.columns["taken"]]
            gallery.add([new[row] for row in images.rows], digests, taken, images.columns["vectors"])
        gallery.add_bad([new[row] for row in images.bad], list(images.bad.values()))
        report.added += len(images.rows)
        report.vanished += batch.vanished
        report.bad_images |= {new[row].path: reason for row, reason in images.bad.items()}
        report.unreadable |= batch.unreadable
        progress.on_batch(images.total + batch.vanished + len(batch.unreadable))
    if state.is_main_process:
        _measure_presence(gallery)
    return report


def _measure_presence(gallery: GalleryWriter) -> None:
    """Measure the threshold again when the gallery has changed by a tenth since the last time."""
    images = gallery.counts()["images"]
    if abs(images - gallery.about.get("absence_images", -1)) > 0.1 * images:
        gallery.note(absence_threshold=absence_threshold(gallery), absence_images=images)


class _Batch(NamedTuple):
    """Images that were read together.

    images: pixel_values, later vectors (n, D) float16; digests (n, 16) uint8; taken (n,) float64, NaN if the date is
        not known; rows are positions in the list of images to embed.
    vanished: number of images whose file is gone since it was listed.
    unreadable: path → what the disk said.
    """

    images: ImageBatch
    vanished: int
    unreadable: dict[str, str]


class _Files:
    """Reads and decodes images in worker processes."""

    def __init__(self, files: Sequence[ImageFile], transform: ImageTransform):
        self.files, self.transform = files, transform

    def load(self, rows: Sequence[int]) -> _Batch:
        good: list[tuple[bytes, float | None]] = []
        vanished: set[int] = set()
        unreadable: dict[int, str] = {}

        def read(row: int) -> np.ndarray:
            try:
                content = self.files[row].read()
                pixels = self.transform.read(content)
            except MissingImageError:
                vanished.add(row)
                raise
            except (OSError, MemoryError) as error:
                unreadable[row] = getattr(error, "strerror", None) or str(error)
                raise BadImageError("unreadable") from None
            good.append((digest_of(content), shot_date(content)))
            return pixels

        images = ImageBatch.read(rows, read, self.transform.pixel_values)
        if good:
            digests, taken = zip(*good, strict=True)
            images.columns["digests"] = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
            images.columns["taken"] = np.array(taken, np.float64)
        bad = {row: reason for row, reason in images.bad.items() if row not in vanished and row not in unreadable}
        reasons = {self.files[row].path: reason for row, reason in unreadable.items()}
        return _Batch(images._replace(bad=bad), len(vanished), reasons)


@torch.inference_mode()
def _embedded(
    model: BertCLIPModel, processor: CLIPProcessor, files: Sequence[ImageFile], loading: Loading
) -> Iterator[_Batch]:
    """Yield the batches of all processes, with their vectors."""
    process = PartialState()
    size = loading.batch_size
    batches = [list(range(len(files))[start : start + size]) for start in range(0, len(files), size)]
    transform = ImageTransform(processor.image_processor)
    loader = DataLoader(
        range(len(files)),
        batch_sampler=batches[process.process_index :: process.num_processes],
        collate_fn=ToSharedMemory(_Files(files, transform).load),
        pin_memory=model.device.type == "cuda",
        **worker_options(loading.workers_for(len(files)), size * transform.bytes_per_image),
    )
    mine = iter(loader)
    for _ in range(0, len(batches), process.num_processes):
        batch = next(mine, None)
        if batch and len(batch.images.rows):
            batch = batch._replace(images=_with_vectors(batch.images, model))
        yield from filter(None, gather_object([batch]))


def _with_vectors(images: ImageBatch, model: BertCLIPModel) -> ImageBatch:
    """The batch with its pixel_values replaced by their vectors."""
    pixel_values = images.columns["pixel_values"].to(model.device, model.dtype, non_blocking=True)
    vectors = F.normalize(model.get_image_features(pixel_values).float(), dim=-1).half().cpu().numpy()
    kept = {name: np.asarray(images.columns[name]) for name in ("digests", "taken")}
    images = images._replace(columns={**kept, "vectors": vectors})
    return images.keep(np.isfinite(vectors).all(axis=1), lambda row: "the model computes NaN for it")
