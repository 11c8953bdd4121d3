"""Frozen vision outputs on disk: each picture goes through the locked tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and image processor>/` of blocks. A block is a safetensors file
with `keys` (n,) and `features` (n, width); its name is the digest of its content, by which one whose bits have turned
is found where that is asked for; a start looks at sizes and headers. Where the features of a table lie is found once
and kept beside the blocks, see `component.training.feature_blocks`.
Blocks are only ever added, whole: an interrupted run loses the block it was at, and several processes can fill one
cache at the same time. The key of a picture says path, size and time of change: a changed picture is a new key.

What is bad is not written down: a picture without a feature is looked at again by the next run.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

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
from component.pairs.image_source import DecodedImages, GoodRows, LoadedImages
from component.pairs.pair_table import PairTable
from component.training.feature_blocks import Block, Blocks, Found, keep_found, merge_found, open_found
from component.training.interruption import naming_lost_process

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most
AT_ONCE = 2**18  # images whose states and keys are worked out together: some 100 bytes each
CAME = "was not there when the run began, and is there now: start again when all files are."


class FeatureCache:
    """The blocks of one tower.

    Args:
        folder: of all caches; made where it is not there.
        fingerprint: of all that decides the features of a picture: weights, image processor, precision.
        width: of a feature, the tower's hidden size.
        dtype: fp16 halves the disk; its rounding is far below that of training in half precision.
        verify: read every block and compare its digest; else its size and header are checked.

    Raises:
        ValueError: the folder cannot be made or written.
    """

    def __init__(
        self, folder: str, fingerprint: str, width: int, dtype: torch.dtype = torch.float16, verify: bool = False
    ):
        self.folder, self.width, self.dtype = os.path.join(folder, fingerprint), width, dtype
        try:
            os.makedirs(self.folder, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise ValueError(
                f"The image feature cache {folder} cannot be made ({error.strerror}). Set `image_feature_cache` to a "
                'folder that can be written, or to "off".'
            ) from None
        self._verify, self._blocks = verify, {}  # name → block
        self.refresh()

    def refresh(self) -> None:
        """Open the blocks that are new in the folder, those of other processes too; damaged ones are removed."""
        for name in sorted(set(os.listdir(self.folder)) - self._blocks.keys()):
            path = os.path.join(self.folder, name)
            if not name.endswith(".safetensors"):
                continue
            with suppress(FileNotFoundError):  # damaged, and another process was the first to remove it
                try:
                    if self._verify and _digest_of(path) != name:
                        raise ValueError
                    self._blocks[name] = Block.open(path)
                except (ValueError, KeyError, safetensors.SafetensorError):
                    logger.warning("%s is damaged: its pictures are computed anew.", path)
                    os.remove(path)

    def blocks(self, names: Iterable[str] | None = None) -> Blocks:
        """Those of these names, all by default. Raises KeyError for one that is not there."""
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
        """Log how much disk so many new pictures need, and raise ValueError where it is not there."""
        need = images * (self.width * self.dtype.itemsize + 8)
        free = shutil.disk_usage(self.folder).free
        logger.info("image features of %d pictures: %.1f MB in %s", images, need / 1e6, self.folder)
        if need > free:
            raise ValueError(
                f"The image features need {need / 1e6:.0f} MB, but {self.folder} has {free / 1e6:.0f} MB free. "
                'Make room, or set `image_feature_cache` to a folder on another disk, or to "off".'
            )


class CachedImages:
    """The images of a table as their features in a cache: vision_pooler_output (n, width).

    Args:
        found: where the features of the table's images lie.
        reasons: first row of an image → why it has no feature.
    """

    def __init__(self, table: PairTable, found: Found, reasons: dict[int, str]):
        self._found, self._numbers = found, table.image_numbers
        bad_rows = found.arrays["bad_rows"]
        self.rows = GoodRows(len(table), bad_rows)
        self.bad = [(row, reasons[table.first_rows[table.image_numbers[row]]]) for row in bad_rows.tolist()]

    def load(self, rows: np.ndarray, generator: torch.Generator | None = None) -> LoadedImages:
        positions = self._found.arrays["positions"][self._numbers[rows]]
        return LoadedImages(rows, {"vision_pooler_output": self._found.blocks[positions]}, [])


def cache_features(
    images: DecodedImages,
    cache: FeatureCache,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int = 0,
    show_progress: bool = True,
) -> CachedImages:
    """The same images from the cache; what it lacks is computed first. Under several processes each computes a share.

    Args:
        encode: the tower: (B, 3, H, W) pixel_values → (B, width) pooled output.
        batch_size: images per call of `encode`.
        num_workers: processes that decode.

    Raises:
        ValueError: the disk has too little room, said before anything is computed; no image is good; or the features
            of other processes did not appear.
        OSError, MemoryError: an image cannot be judged, or a block not written.
    """
    process, table = PartialState(), images.table
    before = open_found(cache.folder, cache.blocks, table)
    if len(set(gather_object([before and before.arrays.version]))) > 1:
        before = None
    numbers, keys, states = _to_look_at(table, before, process.process_index, process.num_processes)
    rows = table.first_rows[numbers]
    missing = cache.find(keys) < 0
    bad: list[tuple[int, str]] = []
    if missing.any():
        cache.require_space(int(missing.sum()) * process.num_processes)
        # A mapped array would be one's own in a worker that is spawned.
        loader = DataLoader(rows[missing].tolist(), batch_size, num_workers=num_workers, collate_fn=images.load)
        with tqdm(total=int(missing.sum()), unit=" images", desc="image features", disable=not show_progress) as bar:
            with naming_lost_process():
                cache.add(_encoded(loader, table, rows[missing], keys[missing], encode, cache.dtype, bad, bar))
    reasons = dict(gather_object(bad))
    looked_at = zip(*gather_object([(numbers, keys, states)]), strict=True)
    numbers, keys, states = map(np.concatenate, looked_at)
    cache.refresh()
    positions = cache.find(keys)
    without = table.first_rows[numbers[positions < 0]].tolist()
    absent = len(without) - len(reasons.keys() & without)
    if absent:
        raise ValueError(
            f"{absent} of {len(table.first_rows)} image features are not in {cache.folder}, though the other "
            "processes are done. Set `image_feature_cache` to a folder on a disk that all machines share."
        )
    if len(without) == len(table.first_rows):
        raise ValueError(f"{table.file}: none of its pictures can be used (the first: {reasons[min(without)]}).")
    if before and (positions < 0).all() and not (before.arrays["states"][numbers] != states).any():
        return CachedImages(table, before, reasons)
    found = merge_found(before, cache.blocks(), len(table.first_rows), numbers, positions, states)
    return CachedImages(table, keep_found(found, cache.folder, table), reasons)


def _to_look_at(
    table: PairTable, before: Found | None, rank: int, processes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one process's share of the images, those that have changed since or had no feature: numbers, keys, states.

    The shares do not depend on what the processes see. What is to be held grows with what is to be looked at.
    """
    found = []
    for first in range(rank, len(table.first_rows), AT_ONCE * processes):
        numbers = np.arange(first, min(first + AT_ONCE * processes, len(table.first_rows)), processes)
        rows = table.first_rows[numbers]
        states = table.image_states(rows)
        if before:
            is_new = (before.arrays["states"][numbers] != states) | (before.arrays["positions"][numbers] < 0)
            numbers, rows, states = numbers[is_new], rows[is_new], states[is_new]
        found.append((numbers, table.image_keys(rows, states), states))
    empty = np.empty(0, np.int64)
    return tuple(map(np.concatenate, zip((empty, empty, empty), *found, strict=True)))


def _encoded(
    loader: Iterable[LoadedImages],
    table: PairTable,
    rows: np.ndarray,
    keys: np.ndarray,
    encode: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    bad: list[tuple[int, str]],
    bar: tqdm,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The keys and features of the good images; (row, reason) of the others are added to `bad`.

    Args:
        rows, keys: (n,) of all images, by row.
    """
    for loaded in loader:
        bad += loaded.bad
        if loaded.rows:
            of_batch = keys[np.searchsorted(rows, loaded.rows)]
            if MISSING in of_batch:
                raise OSError(f"{table.filename(loaded.rows[of_batch.tolist().index(MISSING)])} {CAME}")
            features = encode(loaded.inputs["pixel_values"]).to("cpu", dtype)
            good = features.isfinite().all(dim=1)
            for place in (~good).nonzero()[:, 0].tolist():
                row = loaded.rows[place]
                bad.append((row, f"{table.filename(row)}: its features are no finite numbers"))
            yield of_batch[good.numpy()], features[good]
        bar.update(len(loaded.rows) + len(loaded.bad))


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:
        return _block_name(file.read())
