"""Frozen vision outputs on disk: each picture goes through the locked tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and image processor>/` of shards. A shard is a safetensors file
with `keys` (n,) and `features` (n, width); its name is the digest of its content, so a damaged one gives itself away.
Shards are only ever added, whole: an interrupted run loses the shard it was at, and several processes can fill one
cache at the same time. The key of a picture says path, size and time of change: a changed picture is a new key.
The pictures may be files or members of WebDataset shards, which are not the shards meant here.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

logger = logging.getLogger(__name__)

SHARD_ROWS = 16_384  # 25 MB at a width of 768: what a killed run loses at most
NO_FILE = 0


def fingerprint(vision_model: nn.Module, image_processor, precision: str) -> str:
    """Digest of all that decides the features of a picture: weights, image processor settings, precision."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(vision_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(json.dumps([image_processor.to_dict(), precision], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def image_key(identity: str | None) -> int:
    """64-bit digest of what `PairDataset.image_identity` gives; NO_FILE for None."""
    if identity is None:
        return NO_FILE
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little", signed=True)


class FeatureCache:
    """The shards of one tower.

    Args:
        folder: of all caches; made where it is not there.
        fingerprint: of the tower, see `fingerprint`.
        width: of a feature, the tower's hidden size.
        dtype: fp16 halves the disk; its rounding is far below that of training in half precision.

    Raises:
        ValueError: the folder cannot be made or written.
    """

    def __init__(self, folder: str, fingerprint: str, width: int, dtype: torch.dtype = torch.float16):
        self.folder, self.width, self.dtype = os.path.join(folder, fingerprint), width, dtype
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"The image feature cache {folder} cannot be made ({error.strerror}). Set `image_feature_cache` to a "
                'folder that can be written, or to "off".'
            ) from None
        self._names: set[str] = set()
        self._keys: list[np.ndarray] = [np.empty(0, np.int64)]
        self._shards: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Open the shards that are new in the folder, those of other processes too; damaged ones are removed.

        Positions that `find` gave earlier stay valid: new shards go behind the others.
        """
        for name in sorted(set(os.listdir(self.folder)) - self._names):
            path = os.path.join(self.folder, name)
            if not name.endswith(".safetensors"):
                continue
            with open(path, "rb") as file:
                if _shard_name(file.read()) != name:
                    logger.warning("%s is damaged: its pictures are computed anew.", path)
                    os.remove(path)
                    continue
            shard = safetensors.torch.load_file(path)  # memory-mapped, nothing is read yet
            self._names.add(name)
            self._keys.append(shard["keys"].numpy())
            self._shards.append(shard["features"])
        keys = np.concatenate(self._keys)
        self._order = np.argsort(keys, kind="stable")
        self._sorted_keys = keys[self._order]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._is_bad = np.concatenate([np.empty(0, bool), *(shard[:, 0].isnan().numpy() for shard in self._shards)])

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) keys → (n,) positions for `__getitem__`, -1 where there is no feature yet."""
        if not len(self._sorted_keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self._sorted_keys, keys).clip(max=len(self._sorted_keys) - 1)
        return np.where(self._sorted_keys[at] == keys, self._order[at], -1)

    def good(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions that `find` gave → (n,) bool: a feature lies there, and it is not that of a bad picture."""
        good = positions >= 0
        good[good] = ~self._is_bad[positions[good]]
        return good

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(n,) positions that are all `good` → (n, width) features."""
        features = torch.empty(len(positions), self.width, dtype=self.dtype)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(shards).tolist():
            inside = torch.from_numpy(shards == shard)
            features[inside] = self._shards[shard][torch.from_numpy(positions)[inside] - self._starts[shard]]
        return features

    def add(self, batches: Iterable[tuple[np.ndarray, Tensor]]) -> None:
        """Write (keys (n,), features (n, width)) batches as shards. Call `refresh` to see them."""
        keys, features, rows = [], [], 0
        for batch_keys, batch_features in batches:
            keys.append(batch_keys)
            features.append(batch_features.to("cpu", self.dtype))
            rows += len(batch_keys)
            if rows >= SHARD_ROWS:
                self._write(keys, features)
                keys, features, rows = [], [], 0
        if rows:
            self._write(keys, features)

    def _write(self, keys: list[np.ndarray], features: list[Tensor]) -> None:
        shard = {"keys": torch.from_numpy(np.concatenate(keys)), "features": torch.cat(features)}
        content = safetensors.torch.save(shard)
        temporary = os.path.join(self.folder, f"{platform.node()}-{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, os.path.join(self.folder, _shard_name(content)))
        except OSError as error:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise OSError(f"{self.folder}: a shard of image features cannot be written ({error.strerror}).") from None

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


def cache_features(
    dataset,
    cache: FeatureCache,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int = 0,
    show_progress: bool = True,
) -> None:
    """Let a `PairDataset` take its images from the cache; what the cache lacks is computed first.

    Under several processes each computes its share. Rows whose picture is bad leave the dataset.

    Args:
        encode: the tower: (B, 3, H, W) pixel_values → (B, width) pooled output.
        batch_size: pictures per call of `encode`.
        num_workers: processes that decode.

    Raises:
        ValueError: the disk has too little room, said before anything is computed; or the features of other
            processes did not appear.
        OSError: a shard cannot be written.
    """
    state = PartialState()
    # One row stands for all rows with the same file name.
    _, rows, image_of_row = np.unique(dataset.image_ids, return_index=True, return_inverse=True)
    keys = np.array([image_key(dataset.image_identity(row)) for row in rows])
    # Shared out by key: every process comes to the same split, whatever the others have already written.
    mine = (cache.find(keys) < 0) & (keys != NO_FILE) & (keys % state.num_processes == state.process_index)
    if mine.any():
        cache.require_space(int(mine.sum()) * state.num_processes)
        rows, missing = rows[mine], keys[mine]
        in_order = np.argsort(rows)  # as they lie in a shard
        rows, missing = rows[in_order], missing[in_order]
        loader = DataLoader(rows.tolist(), batch_size, num_workers=num_workers, collate_fn=dataset.load_images)
        with tqdm(total=len(rows), unit=" images", desc="image features", disable=not show_progress) as bar:
            cache.add(_encoded(loader, rows, missing, encode, cache.width, bar))
    state.wait_for_everyone()
    cache.refresh()
    positions = cache.find(keys)
    absent = int(((positions < 0) & (keys != NO_FILE)).sum())
    if absent:
        raise ValueError(
            f"{absent} of {len(keys)} image features are not in {cache.folder}, though the other processes are done. "
            "Set `image_feature_cache` to a folder on a disk that all machines share."
        )
    dataset.use_features(cache, positions[image_of_row])


def _encoded(loader, rows, keys, encode, width: int, bar: tqdm) -> Iterator[tuple[np.ndarray, Tensor]]:
    for good_rows, pixel_values, bad_images in loader:
        size = len(good_rows) + len(bad_images)
        features = torch.full((size, width), torch.nan)
        if good_rows:
            features[torch.from_numpy(np.isin(rows[:size], good_rows))] = encode(pixel_values).float().cpu()
        yield keys[:size], features
        rows, keys = rows[size:], keys[size:]
        bar.update(size)


def _shard_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"
