"""Bring a gallery up to date with the images on disk: only what is new or changed is read.

Shapes: B images, D projection width.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import CLIPProcessor

from component.gallery.rows import ImageFile
from component.hub.identity import ModelIdentity
from component.model import BertCLIPModel
from component.search.embed import COMPUTES_NAN, EmbeddedBatch, Loading, embed_files
from component.search.presence import absence_threshold
from component.search.scan import Sources, scan
from component.search.settle import IndexReport, settle
from component.search.vector_files import read_vectors
from component.search.writer import GalleryWriter


def update(
    gallery: GalleryWriter | None,
    model: BertCLIPModel,
    processor: CLIPProcessor,
    sources: Sources,
    loading: Loading,
    on_total: Callable[[int], None] = lambda total: None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> IndexReport:
    """Scan the sources, and add, move and mark rows until the gallery describes what is there.

    Each batch is on disk before the next begins. With several processes each embeds a share, and the first writes.

    Args:
        gallery: of `gallery_to_write`; None in all processes but the first.
        on_total: called once in the first process, with the number of images to embed.
        on_batch: called there after each batch, with the number of images in it.
    """
    state, report = PartialState(), IndexReport()
    new: list[ImageFile] = []
    if state.is_main_process:
        new = settle(gallery, scan(sources), report)
        if sources.vectors is not None:
            new = _take_vectors(gallery, new, sources.vectors, report)
        on_total(len(new))
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
        bad = {row: reason for row, reason in images.bad.items() if reason != COMPUTES_NAN}
        gallery.add_bad([new[row] for row in bad], list(bad.values()))
        report.added += len(images.rows)
        report.vanished += batch.vanished
        report.bad_images |= {new[row].path: reason for row, reason in bad.items()}
        report.unreadable |= batch.unreadable
        report.unreadable |= {new[row].path: COMPUTES_NAN for row in images.bad.keys() - bad.keys()}
        on_batch(images.total + batch.vanished + len(batch.unreadable))
    if state.is_main_process:
        _measure_presence(gallery)
    return report


def _take_vectors(gallery: GalleryWriter, files: list[ImageFile], folder: str, report: IndexReport) -> list[ImageFile]:
    """Add the images whose vectors are in `folder`, and return the others."""
    image_half, left = ModelIdentity.from_dict(gallery.about["fingerprint"]).image, []
    for shard, group in itertools.groupby(files, key=lambda file: file.shard):
        group = list(group)
        known = None if shard is None else read_vectors(folder, shard, group, image_half)
        if known is None:
            left += group
            continue
        gallery.add([group[row] for row in known.rows], known.digests, known.taken, known.vectors)
        report.added += len(known.rows)
        report.not_embedded += len(known.rows)
        left += [group[row] for row in sorted(set(range(len(group))) - set(known.rows))]
    return left


def _measure_presence(gallery: GalleryWriter) -> None:
    """Measure the threshold again when the gallery has changed by a tenth since the last time."""
    images = gallery.counts()["images"]
    if abs(images - gallery.about.get("absence_images", -1)) > 0.1 * images:
        gallery.note(absence_threshold=absence_threshold(gallery), absence_images=images)


def _embedded(
    model: BertCLIPModel, processor: CLIPProcessor, files: Sequence[ImageFile], loading: Loading
) -> Iterator[EmbeddedBatch]:
    """Yield the batches of all processes."""
    process = PartialState()
    batches = loading.batches(len(files))
    mine = embed_files(model, processor, files, batches[process.process_index :: process.num_processes], loading)
    for _ in range(0, len(batches), process.num_processes):
        yield from filter(None, gather_object([next(mine, None)]))
