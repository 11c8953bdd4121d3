"""Features of locked towers on disk: each image and each text goes through its tower once, not once per epoch.

A cache is a folder `<cache>/<fingerprint of tower and its inputs>/` of blocks. A block is a safetensors file
with `keys` (n,) and `features` (n, width), named by the digest of its content. A start checks sizes and headers; with
`verify`, it reads every block and compares the digests, which finds flipped bits.

Blocks are only ever added, whole: an interrupted run loses the block it was filling, and several processes can fill
one cache at the same time. The key of an image covers its path and `FileState`, so a changed image has a new key. The
key of a text is the table's text id.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain

import numpy as np
import safetensors.torch
import torch
from accelerate.utils import gather_object
from torch import Tensor

from component.ground.files import new_file, sweep
from component.ground.reading import read_file
from component.training.feature_blocks import Block, Blocks
from component.training.first_process import on_first_process
from component.training.shared_disk import sees

logger = logging.getLogger(__name__)

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


def _block_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".safetensors"


def _digest_of(path: str) -> str:
    return _block_name(read_file(path))
