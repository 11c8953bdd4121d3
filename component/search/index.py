"""Bring a gallery up to date with the images on disk: only what is new or changed is read.

Shapes: B images, D projection width.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import CLIPProcessor

from component.ground.cores import usable_cores
from component.image.batch import ImageBatch
from component.image.load import BadImageError, MissingImageError
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.search.gallery import FileState, Gallery, GalleryImage
from component.search.scan import is_below, roots, scan

_AT_A_TIME = 1000  # changed images whose new rows are one transaction


@dataclass
class IndexReport:
    """What an `update` found and did, in numbers of images.

    Attributes:
        unchanged: neither read nor embedded.
        added: embedded.
        moved: content that the gallery knows, under another name or time of change; not embedded.
        gone: marked as deleted.
        known_bad: could not be read before, and have not changed since.
        vanished: were there when the folder was listed, but not when they were to be read.
        bad_images: path → reason, of the images that this run could not read.
    """

    unchanged: int = 0
    added: int = 0
    moved: int = 0
    gone: int = 0
    known_bad: int = 0
    vanished: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)


def update(
    gallery: Gallery | None,
    model: BertCLIPModel,
    processor: CLIPProcessor,
    sources: Sequence[str],
    image_path: str | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    on_total: Callable[[int], None] = lambda total: None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> IndexReport:
    """Look through the sources, and add, move and delete rows until the gallery says what is there.

    Each batch is on disk before the next begins. Under several processes each embeds a share, and the first writes.

    Args:
        gallery: of `gallery_to_write`; the first process alone has one.
        sources, image_path: see `scan`.
        num_workers: processes that read and decode beside this one; None: one per core, at most 8, or none for few
            images.
        on_total, on_batch: called with the number of images to embed, and with those done, by the first process.
    """
    state, report = PartialState(), IndexReport()
    new: list[FileState] = []
    if state.is_main_process:
        new = _settle_without_embedding(gallery, sources, image_path, report)
        on_total(len(new))
    shared = [new]
    broadcast_object_list(shared)
    (new,) = shared
    if num_workers is None:
        num_workers = min(8, usable_cores()) if len(new) > 4 * batch_size else 0
    for batch in _embedded(model, processor, new, batch_size, num_workers):
        if not state.is_main_process:
            continue
        images, asked = batch
        if len(images.rows):
            digests = [digest.tobytes() for digest in images.columns["digests"]]
            gallery.add([new[row] for row in images.rows], digests, images.columns["vectors"])
        gallery.add_bad([new[row] for row in images.bad], list(images.bad.values()))
        report.added += len(images.rows)
        report.vanished += asked - images.total
        report.bad_images |= {new[row].path: reason for row, reason in images.bad.items()}
        on_batch(asked)
    return report


def _settle_without_embedding(gallery: Gallery, sources, image_path, report: IndexReport) -> list[FileState]:
    """Do all that needs no model, and return the images that are left to embed."""
    rows, bad, sizes = gallery.rows_by_path(), gallery.bad_states(), gallery.sizes()
    found = list(scan(sources, image_path))
    seen = {state.path for state in found}
    scanned = roots(sources)

    def is_gone(path: str) -> bool:
        return path not in seen and (is_below(path, scanned) or not os.path.exists(path))

    gone = [image.row for path, image in rows.items() if not image.deleted and is_gone(path)]
    gallery.delete(gone)
    gallery.forget_bad(path for path in bad if is_gone(path))
    report.gone = len(gone)

    changed, back = [], {}
    for state in found:
        image = rows.get(state.path)
        if image and image.state == state:
            if image.deleted:
                back[image.row] = state
            else:
                report.unchanged += 1
        elif bad.get(state.path) == (state.size, state.mtime_ns):
            report.known_bad += 1
        else:
            changed.append(state)
    gallery.move(back)
    report.moved += len(back)

    # Only now: these take over deleted rows, which must not be those of images that are back as they were.
    new = []
    for start in range(0, len(changed), _AT_A_TIME):
        with gallery.together():
            for state in changed[start : start + _AT_A_TIME]:
                image = rows.get(state.path)
                if image and image.deleted:
                    image = None  # its row may be another image's by now
                if state.place is None and state.size in sizes and _take_over(gallery, state, image):
                    report.moved += 1
                else:
                    if image:
                        gallery.delete([image.row])
                    new.append(state)
    return new


def _take_over(gallery: Gallery, state: FileState, before: GalleryImage | None) -> bool:
    """Give an image whose content the gallery knows a row without embedding it; False where it does not."""
    try:
        digest = digest_of(state.read())
    except (OSError, BadImageError):
        return False  # met again, and told, where the others are read
    if before and before.digest == digest:  # touched, not changed
        gallery.move({before.row: state})
        return True
    known = gallery.image_with(digest)
    if known is None:
        return False
    if before:
        gallery.delete([before.row])
    if known.deleted:
        gallery.move({known.row: state})
    else:  # a second copy
        gallery.add([state], [digest], gallery.vectors()[[known.row]])
    return True


def digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


class _Batch(NamedTuple):
    """Images that were read together.

    images: pixel_values, later vectors (n, D) float16, and digests (n, 16) uint8, by row in the list to embed. A row
        that is neither good nor bad vanished after its folder was listed.
    asked: number of images that were to be read.
    """

    images: ImageBatch
    asked: int


class _Files:
    """Reads and decodes images in worker processes."""

    def __init__(self, states: Sequence[FileState], transform: ImageTransform):
        self.states, self.transform = states, transform

    def load(self, rows: Sequence[int]) -> _Batch | OSError:
        """An OSError is returned, not raised: every process must learn of it, or the others wait forever."""
        digests: dict[int, bytes] = {}
        vanished = set()

        def read(row: int) -> np.ndarray:
            try:
                content = self.states[row].read()
                pixels = self.transform.read(content)
            except MissingImageError:
                vanished.add(row)
                raise
            except (OSError, MemoryError) as error:
                raise OSError(f"{self.states[row].path} cannot be read ({error})") from None
            digests[row] = digest_of(content)
            return pixels

        try:
            images = ImageBatch.read(rows, read, self.transform.pixel_values)
        except OSError as error:
            return error
        if digests:
            images.columns["digests"] = np.frombuffer(b"".join(digests.values()), np.uint8).reshape(len(digests), -1)
        bad = {row: reason for row, reason in images.bad.items() if row not in vanished}
        return _Batch(images._replace(bad=bad), len(rows))


@torch.inference_mode()
def _embedded(
    model: BertCLIPModel, processor: CLIPProcessor, states: Sequence[FileState], batch_size: int, num_workers: int
) -> Iterator[_Batch]:
    """Yield the batches of all processes, with their vectors. Raises OSError where the disk cannot be read."""
    process = PartialState()
    batches = [list(range(len(states))[start : start + batch_size]) for start in range(0, len(states), batch_size)]
    loader = DataLoader(
        range(len(states)),
        batch_sampler=batches[process.process_index :: process.num_processes],
        num_workers=num_workers,
        collate_fn=_Files(states, ImageTransform(processor.image_processor)).load,
        pin_memory=model.device.type == "cuda",
    )
    mine = iter(loader)
    for _ in range(0, len(batches), process.num_processes):
        batch = next(mine, None)
        if isinstance(batch, _Batch) and len(batch.images.rows):
            batch = batch._replace(images=_with_vectors(batch.images, model))
        for done in filter(None, gather_object([batch])):
            if isinstance(done, OSError):
                raise done
            yield done


def _with_vectors(images: ImageBatch, model: BertCLIPModel) -> ImageBatch:
    """The batch with its pixel_values replaced by their vectors."""
    pixel_values = images.columns["pixel_values"].to(model.device, model.dtype, non_blocking=True)
    vectors = F.normalize(model.get_image_features(pixel_values).float(), dim=-1).half().cpu().numpy()
    images = images._replace(columns={"digests": np.asarray(images.columns["digests"]), "vectors": vectors})
    return images.keep(np.isfinite(vectors).all(axis=1), lambda row: "the model gives NaN for it")
