"""Frozen vision features on disk: each image goes through the locked tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and image processor>/` of blocks. A block is a safetensors file
with `keys` (n,) and `features` (n, width), named by the digest of its content. A start checks sizes and headers; with
`verify`, it reads every block and compares the digests, which finds flipped bits.

Blocks are only ever added, whole: an interrupted run loses the block it was filling, and several processes can fill
one cache at the same time. The key of an image covers its path and `FileState`, so a changed image has a new key.

Bad images are not recorded: the next run tries an image without a feature again.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from component.ground.file_state import MISSING
from component.ground.files import new_file, sweep
from component.ground.reading import read_file
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.batch import ImageBatch
from component.pairs.image_source import DecodedImages, GoodRows
from component.pairs.pair_table import PairTable
from component.training.bad_images import Reasons, require_few_lost
from component.training.feature_blocks import NO_FEATURE, Block, Blocks, FeatureIndex, shares
from component.training.fill_progress import FillProgress
from component.training.interruption import naming_lost_process
from component.training.shared_disk import sees

logger = logging.getLogger(__name__)

FEW_ROWS = 100  # whose images tell whether the processes see the same files
BLOCK_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most


class FeatureCache:
    """The blocks of one tower.

    Args:
        folder: of all caches; created if it does not exist.
        fingerprint: of everything that determines an image's features: weights, settings, image processor, precision.
        width: of a feature, the tower's hidden size.
        dtype: fp16 halves the disk space; its rounding is far below that of training in half precision.
        verify: read every block and compare its digest, instead of checking its size and header only.

    Raises:
        ValueError: the folder cannot be created or written.
    """

    def __init__(
        self, folder: str, fingerprint: str, width: int, dtype: torch.dtype = torch.float16, verify: bool = False
    ):
        self.folder, self.width, self.dtype = os.path.join(folder, fingerprint), width, dtype
        try:
            others = os.listdir(folder) if os.path.isdir(folder) else []
            if others and fingerprint not in others:
                logger.info(
                    "%s has features of other models, settings or versions: those of this model are computed into a "
                    "new folder in it.",
                    folder,
                )
            os.makedirs(self.folder, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise ValueError(
                f"The image feature cache {folder} cannot be created ({error.strerror}). Set `image_feature_cache` to "
                'a folder that can be written, or to "off".'
            ) from None
        self._verify, self._blocks = verify, {}  # name → block
        self._written: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Open the blocks added since, by this process or others; remove damaged ones."""
        for name in sorted(set(os.listdir(self.folder)) - self._blocks.keys()):
            path = os.path.join(self.folder, name)
            if not name.endswith(".safetensors"):
                continue
            with suppress(FileNotFoundError):  # damaged, and removed by another process
                try:
                    if self._verify and _digest_of(path) != name:
                        raise ValueError
                    self._blocks[name] = Block.open(path)
                except (ValueError, KeyError, safetensors.SafetensorError):
                    logger.warning("%s is damaged: the features of its images are computed again.", path)
                    os.remove(path)

    def blocks(self, names: Iterable[str] | None = None) -> Blocks:
        """The blocks of these names, by default all of them. Raises KeyError for a name without a block."""
        return Blocks([self._blocks[name] for name in (self._blocks if names is None else names)])

    def common_blocks(self) -> Blocks:
        """All blocks that there are now, in one order in all processes, which call this together."""
        self.refresh()
        names = [list(self._blocks)]
        broadcast_object_list(names)  # another run may add blocks at the same time
        names = sorted({*names[0], *chain.from_iterable(gather_object([self._written]))})
        for name in names:
            if name not in self._blocks:
                sees(os.path.join(self.folder, name))
        self.refresh()
        return self.blocks(name for name in names if name in self._blocks)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """As `Blocks.find`, in all blocks."""
        return self.blocks().find(keys)

    def add(self, batches: Iterable[tuple[np.ndarray, Tensor]]) -> None:
        """Write (keys (n,), features (n, width)) batches as blocks. Call `refresh` to see them."""
        keys, features, rows = [], [], 0
        for batch_keys, batch_features in batches:
            keys.append(batch_keys)
            features.append(batch_features)
            rows += len(batch_keys)
            if rows >= BLOCK_ROWS:
                self._write(keys, features)
                keys, features, rows = [], [], 0
        if rows:
            self._write(keys, features)

    def _write(self, keys: list[np.ndarray], features: list[Tensor]) -> None:
        block = {"keys": torch.from_numpy(np.concatenate(keys)), "features": torch.cat(features)}
        content = safetensors.torch.save(block)
        self._written.append(_block_name(content))
        try:
            with new_file(os.path.join(self.folder, self._written[-1]), "wb") as file:
                file.write(content)
        except OSError as error:
            raise OSError(f"{self.folder}: a block of image features cannot be written ({error.strerror}).") from None

    def require_space(self, images: int) -> None:
        """Log the disk space that the features of new images need. Raises ValueError if there is less."""
        need = images * (self.width * self.dtype.itemsize + 8)
        free = shutil.disk_usage(self.folder).free
        logger.info("image features of %d images: %.1f MB in %s", images, need / 1e6, self.folder)
        if need > free:
            raise ValueError(
                f"The image features need {need / 1e6:.0f} MB, but {self.folder} has {free / 1e6:.0f} MB free. "
                'Make room, or set `image_feature_cache` to a folder on another disk, or to "off".'
            )


class ImagesToCheck(NamedTuple):
    """Images of a table that have changed since the index was written, or have no feature: n of them, rising.

    Attributes:
        numbers, keys, states: (n,), see `PairTable`.
    """

    numbers: np.ndarray
    keys: np.ndarray
    states: np.ndarray

    def where(self, chosen: np.ndarray) -> "ImagesToCheck":
        return ImagesToCheck(*(array[chosen] for array in self))

    @classmethod
    def join(cls, pieces: Iterable["ImagesToCheck"]) -> "ImagesToCheck":
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip(cls(empty, empty, empty), *pieces, strict=True)))


class CachedImages:
    """The images of a table as their features in a cache: vision_pooler_output (n, width)."""

    def __init__(self, table: PairTable, index: FeatureIndex):
        self._index, self._numbers = index, table.image_numbers
        self.bytes_per_image = index.blocks.bytes_per_feature
        self.rows = GoodRows(len(table), index.arrays["bad_rows"])
        self.bad = index.bad_rows(table)

    def load(self, rows: np.ndarray, generator: torch.Generator | None = None) -> ImageBatch:
        rows = np.asarray(rows, np.int64)
        positions = self._index.arrays["positions"][self._numbers[rows]]
        return ImageBatch(rows, {"vision_pooler_output": self._index.blocks[positions]}, {})


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
        encode: the tower, (B, 3, H, W) pixel_values → (B, width) pooled output.
        batch_size: images per call of `encode`.
        num_workers: processes that decode images.

    Raises:
        ValueError: the disk has too little space, which is checked before anything is computed; no image is good; or
            the processes do not share the folder of the cache.
        RunFailed: many images were lost on the way, because a shard was replaced or removed; or a process hangs.
        OSError, MemoryError: an image cannot be judged, or a block not written.
    """
    table = images.table
    index = FeatureIndex.open(cache.folder, cache.blocks, table)
    if len(set(gather_object([index and index.arrays.version]))) > 1 or index is None:
        index = FeatureIndex.empty(len(table.first_rows))
    _warn_of_copied_files(table)
    check = _images_to_check(table, index)
    new = check.where(cache.find(check.keys) == NO_FEATURE)
    bad, progress = Reasons(), FillProgress(cache.folder, len(new.numbers))
    if len(new.numbers):
        cache.require_space(len(new.numbers) * PartialState().num_processes)
        workers = worker_options(num_workers, batch_size * images.bytes_per_image)
        collate = ToSharedMemory(images.load)
        loader = DataLoader(table.first_rows[new.numbers], batch_size, collate_fn=collate, **workers)
        with tqdm(total=len(new.numbers), unit=" images", desc="image features", disable=not show_progress) as bar:
            with naming_lost_process():
                counted = _counted(loader, lambda count: (bar.update(count), progress.add(count)))
                cache.add(_encoded(counted, table, new, lambda pixels: encode(pixels).to("cpu", cache.dtype), bad))
    progress.wait()
    blocks = cache.common_blocks()
    positions = blocks.find(check.keys)
    _require_features(table, cache.folder, int((positions == NO_FEATURE).sum()), bad)
    if not all(gather_object([index.has(check.numbers, positions, check.states)])):
        index = index.updated(cache.folder, table, blocks, check.numbers, positions, check.states, bad)
    return CachedImages(table, index)


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


def _images_to_check(table: PairTable, index: FeatureIndex) -> ImagesToCheck:
    """The share of this process. Shares do not depend on what a process sees on disk."""
    pieces = []
    for images in shares(len(table.first_rows)):
        rows = table.first_rows[images]
        states = table.image_states(rows)
        changed = index.arrays["states"][images] != states
        new = np.flatnonzero(changed | (index.arrays["positions"][images] == NO_FEATURE))
        keys = table.image_keys(rows[new], states[new])
        pieces.append(ImagesToCheck(images.start + new, keys, states[new]))
    return ImagesToCheck.join(pieces)


def _require_features(table: PairTable, folder: str, without: int, bad: Reasons) -> None:
    """Raise ValueError if features that were computed are absent, or there is none. All processes call this together.

    Args:
        without: number of images of this process that have no feature.
        bad: those of them that can have none.
    """
    found = gather_object([(without, len(bad), bad.first)])
    absent = sum(without - known for without, known, _ in found)
    if absent:
        raise ValueError(
            f"{absent} of {len(table.first_rows)} image features are not in {folder}, though all processes have "
            "finished. Set `image_feature_cache` to a folder on a disk that all machines share."
        )
    if sum(known for _, known, _ in found) == len(table.first_rows):
        first = min(first for _, _, first in found if first)[1]
        raise ValueError(f"{table.file}: none of its images can be used (the first: {first}).")


def _counted(loader: Iterable[ImageBatch], count: Callable[[int], object]) -> Iterator[ImageBatch]:
    for batch in loader:
        yield batch
        count(batch.total)


def _encoded(
    loader: Iterable[ImageBatch],
    table: PairTable,
    new: ImagesToCheck,
    encode: Callable[[Tensor], Tensor],
    bad: Reasons,
) -> Iterator[tuple[np.ndarray, Tensor]]:
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
            features = encode(batch.columns["pixel_values"])
            batch = batch._replace(columns={"keys": keys, "features": features}).keep(
                features.isfinite().all(dim=1).numpy(),
                lambda row: f"{table.filename(row)}: its features are not finite numbers",
            )
        if len(batch.rows):
            yield batch.columns["keys"], batch.columns["features"]
        for row, reason in sorted(batch.bad.items()):
            bad.add(int(new.numbers[np.searchsorted(rows, row)]), reason)
        require_few_lost(table.file, bad.lost, len(rows))


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"


def _digest_of(path: str) -> str:
    return _block_name(read_file(path))
