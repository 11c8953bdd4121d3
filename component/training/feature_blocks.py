"""The blocks of an image feature cache, mapped from their files."""

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
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.pair_table import PairTable

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Found:
    """Positions in some blocks.

    arrays: of all images: `positions`, -1 where there is no feature, and `states` of their files, as
        `PairTable.image_states`; and `bad_rows`, those of the table whose image has no feature.
    """

    blocks: Blocks
    arrays: FlatArrays


def open_found(folder: str, blocks: Callable[[Iterable[str]], Blocks], table: PairTable) -> Found | None:
    """What was kept for this table; None where nothing was, or a block of then is gone.

    Args:
        folder: of the blocks.
        blocks: gives those of some names, or raises KeyError.
    """
    path = _path(folder, table)
    if path is None or not os.path.isdir(path):
        return None
    try:
        arrays = FlatArrays.open(path)
        if arrays.facts["table"] == table.version:
            return Found(blocks(arrays.facts["blocks"]), arrays)
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.info("%s: the image features are looked up again (%s)", path, error)
    return None


def merge_found(
    before: Found | None, blocks: Blocks, images: int, numbers: np.ndarray, positions: np.ndarray, states: np.ndarray
) -> Found:
    """What was found before and is found now, in memory and without bad_rows.

    Args:
        blocks: all that there are now, those of before among them.
        images: of the table.
        numbers, positions, states: (n,) each, of the images that were looked at now.
    """
    all_positions, all_states = np.full(images, -1), np.full(images, MISSING)
    if before:
        old = before.arrays["positions"]
        is_found = np.flatnonzero(old >= 0)
        start_of = {block.path: start for block, start in zip(blocks.blocks, blocks.starts, strict=False)}
        now = np.array([start_of[block.path] for block in before.blocks.blocks], np.int64)
        block = np.searchsorted(before.blocks.starts, old[is_found], side="right") - 1
        all_positions[is_found] = old[is_found] - before.blocks.starts[block] + now[block]
        all_states = before.arrays["states"].copy()
    all_positions[numbers], all_states[numbers] = positions, states
    arrays = {"positions": all_positions, "states": all_states}
    return Found(blocks, FlatArrays(arrays, {}))


def keep_found(found: Found, folder: str, table: PairTable) -> Found:
    """The same with bad_rows, written for the next start and mapped from there, where that is possible. All processes
    call it."""
    process, path = PartialState(), _path(folder, table)
    bad = np.flatnonzero(found.arrays["positions"] < 0)
    bad_rows = np.flatnonzero(np.isin(table.image_numbers, bad)) if len(bad) else bad
    names = [os.path.basename(block.path) for block in found.blocks.blocks]
    arrays = {name: found.arrays[name] for name in ("positions", "states")} | {"bad_rows": bad_rows}
    facts = {"table": table.version, "blocks": names}
    in_memory = Found(found.blocks, FlatArrays(arrays, facts))
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
    return open_found(folder, lambda _: found.blocks, table) or in_memory


def _path(folder: str, table: PairTable) -> str | None:
    return table.path and os.path.join(folder, f"table-{os.path.basename(table.path)}")
