"""The blocks of an image feature cache, mapped from their files."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor


class Block(NamedTuple):
    path: str
    size: int  # of the file
    keys: np.ndarray  # (n,), memory-mapped, as the features are
    features: Tensor

    @classmethod
    def open(cls, path: str) -> "Block":
        """Raises SafetensorError where size and header do not belong together."""
        tensors = safetensors.torch.load_file(path)  # memory-mapped, nothing but the header is read yet
        return cls(path, os.path.getsize(path), tensors["keys"].numpy(), tensors["features"])

    def require_whole(self) -> None:
        """Raise OSError where the file was cut since it was opened: reading what is gone ends the process (SIGBUS)."""
        with suppress(FileNotFoundError):  # one that was removed stays readable until it is closed
            size = os.path.getsize(self.path)
            if size < self.size:
                raise OSError(
                    f"{self.path} was cut to {size} of {self.size} bytes while it was in use. Start again: what is "
                    "lost is computed anew."
                )


class Blocks:
    """Some blocks of a cache, in an order; a position counts through all of their features. Pickled, it is paths."""

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks
        self.starts = np.cumsum([0, *(len(block.keys) for block in blocks)])  # the position at which each begins

    def __reduce__(self):
        return Blocks.open, ([block.path for block in self.blocks],)

    @classmethod
    def open(cls, paths: Sequence[str]) -> "Blocks":
        return cls(list(map(Block.open, paths)))

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """(n,) positions, each of a feature → (n, width) features. Raises OSError."""
        first = self.blocks[0].features
        features = torch.empty(len(positions), first.shape[1], dtype=first.dtype)
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            block, inside = self.blocks[number], torch.from_numpy(numbers == number)
            block.require_whole()
            features[inside] = block.features[torch.from_numpy(positions)[inside] - self.starts[number]]
        return features

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) keys → (n,) positions, -1 where there is no feature.

        What is asked for is sorted, and the blocks are looked through once: there is no index of them to keep.
        """
        wanted, which = np.unique(keys, return_inverse=True)
        found = np.full(len(wanted), -1)
        for start, block in zip(self.starts, self.blocks, strict=False) if len(wanted) else ():
            places = np.searchsorted(wanted, block.keys).clip(max=len(wanted) - 1)
            inside = np.flatnonzero(wanted[places] == block.keys)
            found[places[inside]] = start + inside
        return found[which]
