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
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
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
from component.training.feature_blocks import NO_FEATURE, Block, Blocks, FeatureIndex
from component.training.interruption import naming_lost_process

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most
IMAGES_AT_ONCE = 2**18  # whose states and keys are computed together, at about 100 bytes each


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
        try:
            with new_file(os.path.join(self.folder, _block_name(content)), "wb") as file:
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


class CachedImages:
    """The images of a table as their features in a cache: vision_pooler_output (n, width).

    Args:
        index: where the features of the table's images are, with `bad_rows`.
        reasons: first row of an image → why it has no feature.
    """

    def __init__(self, table: PairTable, index: FeatureIndex, reasons: dict[int, str]):
        self._index, self._numbers = index, table.image_numbers
        bad_rows = index.arrays["bad_rows"]
        self.bytes_per_image = index.blocks.bytes_per_feature
        self.rows = GoodRows(len(table), bad_rows)
        self.bad = {row: reasons[table.first_rows[table.image_numbers[row]]] for row in bad_rows.tolist()}

    def load(self, rows: np.ndarray, generator: torch.Generator | None = None) -> ImageBatch:
        rows = np.asarray(rows, np.int64)
        positions = self._index.arrays["positions"][self._numbers[rows]]
        return ImageBatch(rows, {"vision_pooler_output": self._index.blocks[positions]}, {})


class ImagesToCheck(NamedTuple):
    """Images of a table that have changed since the index was written, or have no feature: n of them, rising.

    Attributes:
        numbers, keys, states: (n,), see `PairTable`.
    """

    numbers: np.ndarray
    keys: np.ndarray
    states: np.ndarray

    @classmethod
    def join(cls, pieces: Iterable["ImagesToCheck"]) -> "ImagesToCheck":
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip(cls(empty, empty, empty), *pieces, strict=True)))


def cache_features(
    images: DecodedImages,
    cache: FeatureCache,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int = 0,
    show_progress: bool = True,
) -> CachedImages:
    """Compute the features that the cache does not have, and return the same images from the cache.

    With several processes, all call this together and each computes a share.

    Args:
        encode: the tower, (B, 3, H, W) pixel_values → (B, width) pooled output.
        batch_size: images per call of `encode`.
        num_workers: processes that decode images.

    Raises:
        ValueError: the disk has too little space, which is checked before anything is computed; no image is good; or
            the features that other processes computed did not appear.
        OSError, MemoryError: an image cannot be judged, or a block not written.
    """
    process, table = PartialState(), images.table
    index = FeatureIndex.open(cache.folder, cache.blocks, table)
    if index is None or len(set(gather_object([index.arrays.version]))) > 1:
        index = FeatureIndex.empty(len(table.first_rows))
    mine = _images_to_check(table, index, process.process_index, process.num_processes)
    missing = cache.find(mine.keys) == NO_FEATURE
    bad: dict[int, str] = {}

    def encode_on_cpu(pixel_values: Tensor) -> Tensor:
        return encode(pixel_values).to("cpu", cache.dtype)

    if missing.any():
        cache.require_space(int(missing.sum()) * process.num_processes)
        new = ImagesToCheck(*(array[missing] for array in mine))
        rows = table.first_rows[new.numbers].tolist()  # a list, because spawned workers would copy the map
        workers = worker_options(num_workers, batch_size * images.bytes_per_image)
        loader = DataLoader(rows, batch_size, collate_fn=ToSharedMemory(images.load), **workers)
        with tqdm(total=len(rows), unit=" images", desc="image features", disable=not show_progress) as bar:
            with naming_lost_process():
                cache.add(_encoded(_counted(loader, bar), table, new, encode_on_cpu, bad))
    reasons = {row: reason for found in gather_object([bad]) for row, reason in found.items()}
    checked = ImagesToCheck.join(gather_object([mine]))
    cache.refresh()
    positions = cache.find(checked.keys)
    without = table.first_rows[checked.numbers[positions == NO_FEATURE]].tolist()
    absent = len(without) - len(reasons.keys() & without)
    if absent:
        raise ValueError(
            f"{absent} of {len(table.first_rows)} image features are not in {cache.folder}, though the other "
            "processes have finished. Set `image_feature_cache` to a folder on a disk that all machines share."
        )
    if len(without) == len(table.first_rows):
        raise ValueError(f"{table.file}: none of its images can be used (the first: {reasons[min(without)]}).")
    if (positions == NO_FEATURE).all() and (index.arrays["states"][checked.numbers] == checked.states).all():
        return CachedImages(table, index, reasons)  # nothing is new
    index = index.updated(cache.blocks(), checked.numbers, positions, checked.states)
    return CachedImages(table, index.keep(cache.folder, table), reasons)


def _images_to_check(table: PairTable, index: FeatureIndex, rank: int, num_processes: int) -> ImagesToCheck:
    """The share of one process. Shares do not depend on what a process sees on disk."""
    pieces = []
    for first in range(rank, len(table.first_rows), IMAGES_AT_ONCE * num_processes):
        numbers = np.arange(first, min(first + IMAGES_AT_ONCE * num_processes, len(table.first_rows)), num_processes)
        rows = table.first_rows[numbers]
        states = table.image_states(rows)
        changed = index.arrays["states"][numbers] != states
        new = changed | (index.arrays["positions"][numbers] == NO_FEATURE)
        pieces.append(ImagesToCheck(numbers[new], table.image_keys(rows[new], states[new]), states[new]))
    return ImagesToCheck.join(pieces)


def _counted(loader: Iterable[ImageBatch], bar: tqdm) -> Iterator[ImageBatch]:
    for batch in loader:
        yield batch
        bar.update(batch.total)


def _encoded(
    loader: Iterable[ImageBatch],
    table: PairTable,
    new: ImagesToCheck,
    encode: Callable[[Tensor], Tensor],
    bad: dict[int, str],
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield the keys and features of the good images; add row → reason of the others to `bad`.

    Args:
        new: all images that `loader` loads.
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
        bad |= batch.bad


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"


def _digest_of(path: str) -> str:
    return _block_name(read_file(path))
