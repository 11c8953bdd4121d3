"""Features of locked towers on disk: each image and each text goes through its tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and its inputs>/` of blocks. A block is a safetensors file
with `keys` (n,) and `features` (n, width), named by the digest of its content. A start checks sizes and headers; with
`verify`, it reads every block and compares the digests, which finds flipped bits.

Blocks are only ever added, whole: an interrupted run loses the block it was filling, and several processes can fill
one cache at the same time. The key of an image covers its path and `FileState`, so a changed image has a new key. The
key of a text is the table's text id.

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
from component.training.bad_images import Reasons, require_few_lost
from component.training.feature_blocks import NO_FEATURE, Block, Blocks, FeatureIndex, shares
from component.training.feature_items import Items, images_of
from component.training.fill_progress import FillProgress
from component.training.first_process import on_first_process
from component.training.interruption import naming_lost_process
from component.training.shared_disk import sees

logger = logging.getLogger(__name__)

FEW_ROWS = 100  # whose images tell whether the processes see the same files
BLOCK_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most

KeysAndFeatures = Iterator[tuple[np.ndarray, Tensor]]  # (n,) and (n, width), batch by batch


class FeatureCache:
    """The blocks of one tower.

    Args:
        folder: of all caches; created if it does not exist.
        fingerprint: of everything that determines a feature: weights, settings, image processor or tokenizer,
            precision.
        width: of a feature, the tower's hidden size.
        dtype: fp16 halves the disk space; its rounding is far below that of training in half precision.
        verify: read every block and compare its digest, instead of checking its size and header only.
        of: what it has features of, "image" or "text".
        key: the argument that names `folder`; None: that of `of`, which can also be "off".

    Raises:
        ValueError: the folder cannot be created or written.
    """

    def __init__(
        self,
        folder: str,
        fingerprint: str,
        width: int,
        dtype: torch.dtype = torch.float16,
        verify: bool = False,
        of: str = "image",
        key: str | None = None,
    ):
        self.folder, self.width, self.dtype = os.path.join(folder, fingerprint), width, dtype
        self.of, self._key = of, key
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
                f"The {of} feature cache {folder} cannot be created ({error.strerror}). "
                f"{self.remedy('a folder that can be written')}."
            ) from None
        self._verify, self._blocks = verify, {}  # name → block
        self._written: list[str] = []
        self.refresh()

    def remedy(self, where: str) -> str:
        """What a user can do: "Set `image_feature_cache` to a folder on another disk, or to "off"" and the like."""
        if self._key:
            return f"Set `{self._key}` to {where}"
        return f'Set `{self.of}_feature_cache` to {where}, or to "off"'

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
                    logger.warning("%s is damaged: the features of its %ss are computed again.", path, self.of)
                    os.remove(path)

    def blocks(self, names: Iterable[str] | None = None) -> Blocks:
        """The blocks of these names, by default all of them. Raises KeyError for a name without a block."""
        return Blocks([self._blocks[name] for name in (self._blocks if names is None else names)])

    def common_blocks(self) -> Blocks:
        """All blocks that there are now, in one order in all processes, which call this together."""
        self.refresh()
        seen = on_first_process(lambda: list(self._blocks))  # another run may add blocks at the same time
        names = sorted({*seen, *chain.from_iterable(gather_object([self._written]))})
        for name in names:
            if name not in self._blocks:
                sees(os.path.join(self.folder, name))
        self.refresh()
        return self.blocks(name for name in names if name in self._blocks)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """As `Blocks.find`, in all blocks."""
        return self.blocks().find(keys)

    def add(self, batches: KeysAndFeatures) -> None:
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
            raise OSError(
                f"{self.folder}: a block of {self.of} features cannot be written ({error.strerror})."
            ) from None

    def require_space(self, count: int) -> None:
        """Log the disk space that the features of new items need. Raises ValueError if there is less."""
        need = count * (self.width * self.dtype.itemsize + 8)
        free = shutil.disk_usage(self.folder).free
        logger.info("%s features of %d %ss: %.1f MB in %s", self.of, count, self.of, need / 1e6, self.folder)
        if need > free:
            raise ValueError(
                f"The {self.of} features need {need / 1e6:.0f} MB, but {self.folder} has {free / 1e6:.0f} MB free. "
                f"Make room. {self.remedy('a folder on another disk')}."
            )


class ItemsToCheck(NamedTuple):
    """Items of a table that have changed since the index was written, or have no feature: n of them, rising.

    Attributes:
        numbers, keys, states: (n,), see `Items`.
    """

    numbers: np.ndarray
    keys: np.ndarray
    states: np.ndarray

    def where(self, chosen: np.ndarray) -> "ItemsToCheck":
        return ItemsToCheck(*(array[chosen] for array in self))

    @classmethod
    def join(cls, pieces: Iterable["ItemsToCheck"]) -> "ItemsToCheck":
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip(cls(empty, empty, empty), *pieces, strict=True)))


class Features:
    """The features of a table's rows, which must have one: (m,) rows → (m, width)."""

    def __init__(self, numbers: np.ndarray | GoodRows, index: FeatureIndex):
        self._numbers, self._index = numbers, index
        self.bytes_per_row = index.blocks.bytes_per_feature

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return self._index.blocks[self._index.arrays["positions"][self._numbers[rows]]]


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


def filled_index(
    items: Items,
    cache: FeatureCache,
    compute: Callable[["ItemsToCheck", Reasons, Callable[[int], object]], KeysAndFeatures],
    show_progress: bool,
) -> FeatureIndex:
    """The index of the cache, after computing the features that it did not have.

    With several processes, all call this together and each computes a share. One that is late may take any time.

    Args:
        compute: yields the keys and features of new items, each key once; adds to `Reasons` the numbers of those that
            have none; and calls the function with the number of items done.

    Raises:
        as `cache_features`.
    """
    index = FeatureIndex.open(cache.folder, cache.blocks, items.table)
    if len(set(gather_object([index and index.arrays.version]))) > 1 or index is None:
        index = FeatureIndex.empty(len(items.rows))
    check = _items_to_check(items, index)
    new = check.where(cache.find(check.keys) == NO_FEATURE)
    is_first = new.keys == MISSING  # which says nothing about the image
    is_first[np.unique(new.keys, return_index=True)[1]] = True
    new = new.where(is_first)  # a text may be that of many rows
    bad, progress = Reasons(), FillProgress(cache, len(new.numbers))
    if len(new.numbers):
        cache.require_space(len(new.numbers) * PartialState().num_processes)
        unit, desc = f" {items.name}s", f"{items.name} features"
        with tqdm(total=len(new.numbers), unit=unit, desc=desc, disable=not show_progress) as bar:
            with naming_lost_process():
                cache.add(compute(new, bad, lambda count: (bar.update(count), progress.add(count))))
    progress.wait()
    blocks = cache.common_blocks()
    positions = blocks.find(check.keys)
    _require_features(items, cache, int((positions == NO_FEATURE).sum()), bad)
    if not all(gather_object([index.has(check.numbers, positions, check.states)])):
        index = index.updated(cache.folder, items, blocks, check.numbers, positions, check.states, bad)
    return index


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


def _items_to_check(items: Items, index: FeatureIndex) -> ItemsToCheck:
    """The share of this process. Shares do not depend on what a process sees on disk."""
    pieces = []
    for share in shares(len(items.rows)):
        rows = items.rows[share]
        states = items.states(rows)
        changed = index.arrays["states"][share] != states
        new = np.flatnonzero(changed | (index.arrays["positions"][share] == NO_FEATURE))
        keys = items.keys(rows[new], states[new])
        pieces.append(ItemsToCheck(share.start + new, keys, states[new]))
    return ItemsToCheck.join(pieces)


def _require_features(items: Items, cache: FeatureCache, without: int, bad: Reasons) -> None:
    """Raise ValueError if features that were computed are absent, or there is none. All processes call this together.

    Args:
        without: number of items of this process that have no feature.
        bad: those of them that can have none.
    """
    found = gather_object([(without, len(bad), bad.first)])
    absent = sum(without - known for without, known, _ in found)
    if absent:
        raise ValueError(
            f"{absent} of {len(items.rows)} {items.name} features are not in {cache.folder}, though all processes "
            f"have finished. {cache.remedy('a folder on a disk that all machines share')}."
        )
    if sum(known for _, known, _ in found) == len(items.rows):
        first = min(first for _, _, first in found if first)[1]
        raise ValueError(f"{items.table.file}: none of its images can be used (the first: {first}).")


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


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"


def _digest_of(path: str) -> str:
    return _block_name(read_file(path))
