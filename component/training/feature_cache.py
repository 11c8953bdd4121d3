"""Frozen vision outputs on disk: each picture goes through the locked tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and image processor>/` of blocks. A block is a safetensors file
with `keys` (n,) and `features` (n, width); its name is the digest of its content, so a damaged one gives itself away.
Blocks are only ever added, whole: an interrupted run loses the block it was at, and several processes can fill one
cache at the same time. The key of a picture says path, size and time of change: a changed picture is a new key.

What is bad is not written down: a picture without a feature is looked at again by the next run. (Older versions wrote
a feature of NaN for it, and some of those stand for a disk that was away.)
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

from component.files import new_file, sweep
from component.pairs.image_source import DecodedImages, LoadedImages
from component.pairs.pair_table import PairTable
from component.training.interruption import naming_lost_process

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most
NO_FILE = 0
CAME = "was not there when the run began, and is there now: start again when all files are."


def image_key(identity: str | None) -> int:
    """64-bit digest of what `PairTable.image_identity` gives; NO_FILE for None."""
    if identity is None:
        return NO_FILE
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little", signed=True)


class _Block(NamedTuple):
    path: str
    size: int  # of the file
    features: Tensor  # memory-mapped

    def require_whole(self) -> None:
        """Raise OSError where the file was cut since it was opened: reading what is gone ends the process (SIGBUS)."""
        with suppress(FileNotFoundError):  # one that was removed stays readable until it is closed
            size = os.path.getsize(self.path)
            if size < self.size:
                raise OSError(
                    f"{self.path} was cut to {size} of {self.size} bytes while it was in use. Start again: what is "
                    "lost is computed anew."
                )


class FeatureCache:
    """The blocks of one tower.

    Args:
        folder: of all caches; made where it is not there.
        fingerprint: of all that decides the features of a picture: weights, image processor, precision.
        width: of a feature, the tower's hidden size.
        dtype: fp16 halves the disk; its rounding is far below that of training in half precision.

    Raises:
        ValueError: the folder cannot be made or written.
    """

    def __init__(self, folder: str, fingerprint: str, width: int, dtype: torch.dtype = torch.float16):
        self.folder, self.width, self.dtype = os.path.join(folder, fingerprint), width, dtype
        try:
            os.makedirs(self.folder, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise ValueError(
                f"The image feature cache {folder} cannot be made ({error.strerror}). Set `image_feature_cache` to a "
                'folder that can be written, or to "off".'
            ) from None
        self._names: set[str] = set()
        self._blocks: list[_Block] = []
        self._keys = self._positions = np.empty(0, np.int64)  # sorted by key
        self._starts = np.zeros(1, np.int64)  # the position at which each block begins, and the end
        self.refresh()

    def refresh(self) -> None:
        """Open the blocks that are new in the folder, those of other processes too; damaged ones are removed.

        Positions that `find` gave earlier stay valid: new blocks go behind the others.
        """
        keys, positions, end = [self._keys], [self._positions], int(self._starts[-1])
        starts = [self._starts]
        for name in sorted(set(os.listdir(self.folder)) - self._names):
            path = os.path.join(self.folder, name)
            if not name.endswith(".safetensors"):
                continue
            with suppress(FileNotFoundError):  # damaged, and another process was the first to remove it
                with open(path, "rb") as file:
                    content = file.read()
                if _block_name(content) != name:
                    logger.warning("%s is damaged: its pictures are computed anew.", path)
                    os.remove(path)
                    continue
                tensors = safetensors.torch.load_file(path)  # memory-mapped, nothing is read yet
                self._names.add(name)
                self._blocks.append(_Block(path, len(content), tensors["features"]))
                good = np.flatnonzero(~tensors["features"][:, 0].isnan().numpy())
                keys.append(tensors["keys"].numpy()[good])
                positions.append(end + good)
                end += len(tensors["features"])
                starts.append(np.array([end]))
        keys, positions = np.concatenate(keys), np.concatenate(positions)
        order = np.argsort(keys, kind="stable")
        self._keys, self._positions, self._starts = keys[order], positions[order], np.concatenate(starts)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) keys → (n,) positions for `__getitem__`, -1 where there is no feature."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._positions[at], -1)

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(n,) positions that `find` gave, none of them -1 → (n, width) features. Raises OSError."""
        features = torch.empty(len(positions), self.width, dtype=self.dtype)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            block, inside = self._blocks[number], torch.from_numpy(numbers == number)
            block.require_whole()
            features[inside] = block.features[torch.from_numpy(positions)[inside] - self._starts[number]]
        return features

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
        positions: of each row's feature; -1 where there is none.
        bad: (row, reason) for each of these.
    """

    def __init__(self, cache: FeatureCache, positions: np.ndarray, bad: list[tuple[int, str]]):
        self._cache, self._positions, self.bad = cache, positions, bad
        self.rows = np.flatnonzero(positions >= 0)

    def load(self, rows: np.ndarray, generator: torch.Generator | None = None) -> LoadedImages:
        return LoadedImages(rows, {"vision_pooler_output": self._cache[self._positions[rows]]}, [])


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
    state, table = PartialState(), images.table
    # One row stands for all rows with the same file name. The processes' shares do not depend on what they see.
    _, rows, image_of_row = np.unique(table.image_ids, return_index=True, return_inverse=True)
    keys, share = np.empty(len(rows), np.int64), slice(state.process_index, None, state.num_processes)
    parts = gather_object([np.array([image_key(table.image_identity(row)) for row in rows[share]], np.int64)])
    for process, part in enumerate(parts):
        keys[process :: state.num_processes] = part
    missing = cache.find(keys[share]) < 0
    rows_to_do, keys_to_do, bad = rows[share][missing], keys[share][missing], []
    if len(rows_to_do):
        cache.require_space(len(rows_to_do) * state.num_processes)
        in_order = np.argsort(rows_to_do)  # as they lie in a shard
        rows_to_do, keys_to_do = rows_to_do[in_order], keys_to_do[in_order]
        loader = DataLoader(rows_to_do.tolist(), batch_size, num_workers=num_workers, collate_fn=images.load)
        with tqdm(total=len(rows_to_do), unit=" images", desc="image features", disable=not show_progress) as bar:
            with naming_lost_process():
                cache.add(_encoded(loader, table, rows_to_do, keys_to_do, encode, cache.dtype, bad, bar))
    reasons = dict(gather_object(bad))
    cache.refresh()
    positions = cache.find(keys)
    without = rows[positions < 0].tolist()
    absent = len(without) - len(reasons.keys() & without)
    if absent:
        raise ValueError(
            f"{absent} of {len(keys)} image features are not in {cache.folder}, though the other processes are done. "
            "Set `image_feature_cache` to a folder on a disk that all machines share."
        )
    if len(without) == len(rows):
        raise ValueError(f"{table.file}: none of its pictures can be used (the first: {reasons[min(without)]}).")
    positions = positions[image_of_row]
    lacking = np.flatnonzero(positions < 0).tolist()
    return CachedImages(cache, positions, [(row, reasons[rows[image_of_row[row]]]) for row in lacking])


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
            if NO_FILE in of_batch:
                raise OSError(f"{table.filename(loaded.rows[of_batch.tolist().index(NO_FILE)])} {CAME}")
            features = encode(loaded.inputs["pixel_values"]).to("cpu", dtype)
            good = features.isfinite().all(dim=1)
            for place in (~good).nonzero()[:, 0].tolist():
                row = loaded.rows[place]
                bad.append((row, f"{table.filename(row)}: its features are no finite numbers"))
            yield of_batch[good.numpy()], features[good]
        bar.update(len(loaded.rows) + len(loaded.bad))


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"
