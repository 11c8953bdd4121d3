"""The files of an image feature cache, and the index that says which of their features belongs to which image.

A block is one safetensors file with the keys and features of some images. `Blocks` reads several of them as one
array. A `FeatureIndex` holds the position of each image of a table in that array, so that only the first start on a
table looks the keys up.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from component.ground.file_state import MISSING
from component.ground.files import new_folder
from component.ground.reading import with_retries
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.pair_table import PairTable

logger = logging.getLogger(__name__)

NO_FEATURE = -1  # in an array of positions


class Block(NamedTuple):
    """One file of a cache.

    Attributes:
        size: of the file when it was opened, in bytes.
        keys: (n,) int64, of the images; memory-mapped, as the features are.
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
        wanted, which = np.unique(keys, return_inverse=True)
        found = np.full(len(wanted), NO_FEATURE)
        for start, block in zip(self.starts, self.blocks, strict=False) if len(wanted) else ():
            slots = np.searchsorted(wanted, block.keys).clip(max=len(wanted) - 1)
            inside = np.flatnonzero(wanted[slots] == block.keys)
            found[slots[inside]] = start + inside
        return found[which]


@dataclass(frozen=True)
class FeatureIndex:
    """Where the feature of each image of a table is.

    Attributes:
        blocks: that the positions count through.
        arrays: `positions` (images,), NO_FEATURE for an image without one; `states` (images,), the `FileState.number`
            of each image's file; `bad_rows`, the rows of the table whose image has no feature.
    """

    blocks: Blocks
    arrays: FlatArrays

    @classmethod
    def empty(cls, images: int) -> "FeatureIndex":
        arrays = {"positions": np.broadcast_to(NO_FEATURE, images), "states": np.broadcast_to(MISSING, images)}
        return cls(Blocks([]), FlatArrays(arrays, {}))

    @classmethod
    def open(cls, folder: str, blocks: Callable[[Iterable[str]], Blocks], table: PairTable) -> "FeatureIndex | None":
        """Map the index that `keep` wrote for a table; None if there is none, or one of its blocks is gone.

        Args:
            folder: of the blocks.
            blocks: gives the blocks of some names, or raises KeyError.
        """
        path = _index_path(folder, table)
        if path is None or not os.path.isdir(path):
            return None
        try:
            arrays = FlatArrays.open(path)
            if arrays.facts["table"] == table.version:
                return cls(blocks(arrays.facts["blocks"]), arrays)
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.info("%s: the image features are looked up again (%s)", path, error)
        return None

    def updated(
        self, blocks: Blocks, numbers: np.ndarray, positions: np.ndarray, states: np.ndarray
    ) -> "FeatureIndex":
        """This index over more blocks and with new entries, in memory.

        Args:
            blocks: all blocks there are now, those of this index among them.
            numbers, positions, states: (n,) images, and what they have now.
        """
        all_positions = self.arrays["positions"].copy()
        found = np.flatnonzero(all_positions != NO_FEATURE)
        start_of = {block.path: start for block, start in zip(blocks.blocks, blocks.starts, strict=False)}
        starts = np.array([start_of[block.path] for block in self.blocks.blocks], np.int64)
        inside = self.blocks.block_numbers(all_positions[found])
        all_positions[found] += starts[inside] - self.blocks.starts[inside]
        all_states = self.arrays["states"].copy()
        all_positions[numbers], all_states[numbers] = positions, states
        return FeatureIndex(blocks, FlatArrays({"positions": all_positions, "states": all_states}, {}))

    def keep(self, folder: str, table: PairTable) -> "FeatureIndex":
        """Add `bad_rows` and write the index for the next start; the result is mapped from there if that succeeded.

        All processes call this together.
        """
        process, path = PartialState(), _index_path(folder, table)
        bad = np.flatnonzero(self.arrays["positions"] == NO_FEATURE)
        bad_rows = np.flatnonzero(np.isin(table.image_numbers, bad)) if len(bad) else bad
        arrays = {name: self.arrays[name] for name in ("positions", "states")} | {"bad_rows": bad_rows}
        names = [os.path.basename(block.path) for block in self.blocks.blocks]
        facts = {"table": table.version, "blocks": names}
        in_memory = FeatureIndex(self.blocks, FlatArrays(arrays, facts))
        if not all(gather_object([path is not None])):
            return in_memory
        if process.is_main_process:
            try:
                with new_folder(path) as new:
                    writer = ArrayWriter(new)
                    for name, array in arrays.items():
                        writer.append(name, array)
                    writer.finish(facts)
            except OSError as error:
                logger.warning("%s cannot be written (%s): the next start looks the features up again.", path, error)
        process.wait_for_everyone()
        return FeatureIndex.open(folder, lambda _: self.blocks, table) or in_memory


def _index_path(folder: str, table: PairTable) -> str | None:
    return table.path and os.path.join(folder, f"table-{os.path.basename(table.path)}")
