"""The files of a feature cache: each has the keys and features of some items. Several are read as one array."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from component.ground.retries import with_retries

NO_FEATURE = -1  # in an array of positions


class Block(NamedTuple):
    """One file of a cache.

    Attributes:
        size: of the file when it was opened, in bytes.
        keys: (n,) int64, of the items; memory-mapped, as the features are.
        features: (n, width).
    """

    path: str
    size: int
    keys: np.ndarray
    features: Tensor

    @classmethod
    def open(cls, path: str) -> "Block":
        """Map a file.

        Raises:
            SafetensorError: its size does not match its header.
            OSError: it cannot be read, as `with_retries`.
        """
        return with_retries(lambda: cls._map(path))

    @classmethod
    def _map(cls, path: str) -> "Block":
        with open(path, "rb"):  # raises the true error, which safetensors calls a missing file and torch RuntimeError
            try:
                tensors = safetensors.torch.load_file(path)  # reads the header only
            except (FileNotFoundError, RuntimeError) as error:
                raise OSError(errno.EIO, str(error), path) from None
        return cls(path, os.path.getsize(path), tensors["keys"].numpy(), tensors["features"])

    def require_whole(self) -> None:
        """Raise OSError if the file was cut since it was opened: reading beyond its end kills the process (SIGBUS)."""
        with suppress(FileNotFoundError):  # a removed file stays readable until it is closed
            size = os.path.getsize(self.path)
            if size < self.size:
                raise OSError(
                    f"{self.path} was cut to {size} of {self.size} bytes while it was in use. Start again: the lost "
                    "features are computed again."
                )


class Blocks:
    """Blocks in a fixed order, read as one array of features. A pickled `Blocks` holds paths only."""

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks
        self.starts = np.cumsum([0, *(len(block.keys) for block in blocks)])  # position of each block's first feature

    def __reduce__(self):
        return Blocks.open, ([block.path for block in self.blocks],)

    @classmethod
    def open(cls, paths: Sequence[str]) -> "Blocks":
        return cls(list(map(Block.open, paths)))

    @property
    def bytes_per_feature(self) -> int:
        return self.blocks[0].features[0].nbytes

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(n,) positions → (n, width) features. Raises OSError as `Block.require_whole`."""
        first = self.blocks[0].features
        features = torch.empty(len(positions), first.shape[1], dtype=first.dtype)
        order = np.argsort(positions, kind="stable")  # a run of them for each block, read from front to back
        ordered = positions[order]
        bounds = np.searchsorted(ordered, self.starts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            block, run = self.blocks[number], slice(*bounds[number : number + 2])
            block.require_whole()
            inside = torch.from_numpy(ordered[run] - self.starts[number])
            features[torch.from_numpy(order[run])] = block.features[inside]
        return features

    def block_numbers(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions → (n,) numbers of the blocks that they are in."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) keys → (n,) positions, NO_FEATURE for a key that no block has.

        Sorts the keys and reads each block's keys once, instead of keeping an index of all blocks in memory.
        """
        wanted = np.sort(keys)
        found = np.full(len(wanted), NO_FEATURE)
        for start, block in zip(self.starts, self.blocks, strict=False) if len(wanted) else ():
            slots = np.searchsorted(wanted, block.keys).clip(max=len(wanted) - 1)
            inside = np.flatnonzero(wanted[slots] == block.keys)
            found[slots[inside]] = start + inside
        return found[np.searchsorted(wanted, keys)]
