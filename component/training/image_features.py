"""The features of a table's images: each image goes through the locked tower once, not once per epoch."""

import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from component.ground.file_state import MISSING
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.batch import ImageBatch
from component.pairs.image_source import DecodedImages, GoodRows
from component.pairs.pair_table import PairTable
from component.training.bad_images import require_few_lost
from component.training.feature_cache import FeatureCache, KeysAndFeatures
from component.training.feature_filling import Features, filled_index
from component.training.feature_index import FeatureIndex
from component.training.feature_items import ItemsToCheck, images_of
from component.training.reasons import Reasons

logger = logging.getLogger(__name__)

FEW_ROWS = 100  # whose images tell whether the processes see the same files


class CachedImages:
    """The images of a table as their features in a cache: vision_pooler_output (n, width)."""

    def __init__(self, table: PairTable, index: FeatureIndex):
        self.features = Features(table.image_numbers, index)
        self.bytes_per_image = self.features.bytes_per_row
        self.rows = GoodRows(len(table), index.arrays["bad_rows"])
        self.bad = index.bad_rows(table.image_numbers)

    def load(self, rows: np.ndarray, generator: torch.Generator | None = None) -> ImageBatch:
        rows = np.asarray(rows, np.int64)
        return ImageBatch(rows, {"vision_pooler_output": self.features[rows]}, {})


def cache_features(
    images: DecodedImages,
    cache: FeatureCache,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int = 0,
    show_progress: bool = True,
) -> CachedImages:
    """Compute the features that the cache does not have, and return the same images from the cache.

    With several processes, all call this together and each computes a share. One that is late may take any time.

    Args:
        encode: the tower, (B, H, W, 3) uint8 pixels → (B, width) pooled output.
        batch_size: images per call of `encode`.
        num_workers: processes that decode images.

    Raises:
        ValueError: the disk has too little space, which is checked before anything is computed; no image is good; or
            the processes do not share the folder of the cache.
        RunFailed: many images were lost on the way, because a shard was replaced or removed; or a process hangs.
        OSError, MemoryError: an image cannot be judged, or a block not written.
    """
    table = images.table

    def compute(new: ItemsToCheck, bad: Reasons, count: Callable[[int], object]) -> KeysAndFeatures:
        workers = worker_options(num_workers, batch_size * images.bytes_per_image)
        collate = ToSharedMemory(images.load)
        loader = DataLoader(table.first_rows[new.numbers], batch_size, collate_fn=collate, **workers)
        counted = _counted(loader, count)
        return _encoded(counted, table, new, lambda pixels: encode(pixels).to("cpu", cache.dtype), bad)

    _warn_of_copied_files(table)
    return CachedImages(table, filled_index(images_of(table), cache, compute, show_progress))


def _warn_of_copied_files(table: PairTable) -> None:
    """Log if the image files have other times on another machine: their features are found by these."""
    some = np.arange(min(len(table), FEW_ROWS))
    states = gather_object([table.image_states(some).tobytes()])
    if len(set(states)) > 1:
        logger.warning(
            "the image files of %s are copies with other times on process %d. Image files are known by their times: "
            "after another copy, or with other processes, their features are computed again. Put them on a shared "
            "disk, or use shards, which are known by their content.",
            *(table.file, [state != states[0] for state in states].index(True)),
        )


def _counted(loader: Iterable[ImageBatch], count: Callable[[int], object]) -> Iterator[ImageBatch]:
    for batch in loader:
        yield batch
        count(batch.total)


def _encoded(
    loader: Iterable[ImageBatch],
    table: PairTable,
    new: ItemsToCheck,
    encode: Callable[[Tensor], Tensor],
    bad: Reasons,
) -> KeysAndFeatures:
    """Yield the keys and features of the good images; add image number and reason of the others to `bad`.

    Args:
        new: all images that `loader` loads, in order.
    """
    rows = table.first_rows[new.numbers]
    for batch in loader:
        if len(batch.rows):
            keys = new.keys[np.searchsorted(rows, batch.rows)]
            if MISSING in keys:
                name = table.filename(batch.rows[keys.tolist().index(MISSING)])
                raise OSError(f"{name} did not exist when the run began, and does now. Start again when all files do.")
            features = encode(batch.columns["pixels"])
            batch = batch._replace(columns={"keys": keys, "features": features}).keep(
                features.isfinite().all(dim=1).numpy(),
                lambda row: f"{table.filename(row)}: its features are not finite numbers",
            )
        if len(batch.rows):
            yield batch.columns["keys"], batch.columns["features"]
        for row, reason in sorted(batch.bad.items()):
            bad.add(int(new.numbers[np.searchsorted(rows, row)]), reason)
        require_few_lost(table.file, bad.lost, len(rows))
