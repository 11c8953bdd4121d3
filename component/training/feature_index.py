"""Which feature of a cache belongs to which image or text of a table.

An index holds the position of each item in the blocks of the cache, so that only the first start on a table looks the
keys up.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from component.ground.file_state import MISSING
from component.ground.files import new_folder
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.pair_table import PairTable
from component.pairs.ragged import RaggedArray
from component.training.feature_blocks import NO_FEATURE, Blocks
from component.training.feature_items import Items, ItemsToCheck
from component.training.reasons import Reasons

logger = logging.getLogger(__name__)

ITEMS_AT_ONCE = 2**17  # of one process: about 100 bytes each, and 16 of each process
ROWS_AT_ONCE = 2**22


def shares(items: int) -> Iterator[slice]:
    """Ranges of items, which this process works on in turn with the others; in each turn every process has one."""
    process = PartialState()
    size = min(ITEMS_AT_ONCE, -(-items // process.num_processes))
    for first in range(
        process.process_index * size, items + process.process_index * size, size * process.num_processes
    ):
        yield slice(min(first, items), min(first + size, items))


class _Piece(NamedTuple):
    """What an index says of a range of items. Field names are those of its arrays."""

    positions: np.ndarray
    states: np.ndarray
    bad_images: np.ndarray
    reasons: np.ndarray
    reason_lengths: np.ndarray


@dataclass(frozen=True)
class FeatureIndex:
    """Where the feature of each image or text of a table is.

    Attributes:
        blocks: that the positions count through.
        arrays: `positions` (items,), NO_FEATURE for one without a feature; `states` (items,), see `Items`; `bad_rows`,
            the rows of the table whose item has no feature; `bad_images`, these items, and `reasons` with
            `reason_offsets` why, see `BadRows`.
    """

    blocks: Blocks
    arrays: FlatArrays

    @classmethod
    def empty(cls, items: int) -> "FeatureIndex":
        arrays = {"positions": np.broadcast_to(NO_FEATURE, items), "states": np.broadcast_to(MISSING, items)}
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
            arrays["reasons"]  # an older version did not write them
            if arrays.facts["table"] == table.version:
                return cls(blocks(arrays.facts["blocks"]), arrays)
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.info("%s: the features are looked up again (%s)", path, error)
        return None

    def has(self, check: ItemsToCheck, positions: np.ndarray) -> bool:
        """Whether this index says the same of some items, which have no features in it."""
        return bool((positions == NO_FEATURE).all() and (self.arrays["states"][check.numbers] == check.states).all())

    def bad_rows(self, numbers: np.ndarray) -> "BadRows":
        """numbers: as of `Items`."""
        return BadRows(self.arrays, numbers)

    def updated(
        self,
        folder: str,
        items: Items,
        blocks: Blocks,
        check: ItemsToCheck,
        positions: np.ndarray,
        bad: Reasons,
    ) -> "FeatureIndex":
        """This index over more blocks and with new entries.

        It is written for the next start and mapped from there, or is in memory if it cannot be. All processes call
        this together with entries of their own `shares`.

        Args:
            blocks: all blocks there are now, those of this index among them.
            check, positions: n items, and the positions (n,) that they have now.
            bad: why items have no feature.
        """
        process, table = PartialState(), items.table
        path = _index_path(folder, table)
        start_of = {block.path: start for block, start in zip(blocks.blocks, blocks.starts, strict=False)}
        shifts = np.array([start_of[block.path] for block in self.blocks.blocks], np.int64) - self.blocks.starts[:-1]

        def pieces() -> Iterator[_Piece]:
            for share in shares(len(items.rows)):
                ours, known = self.arrays["positions"][share].copy(), self.arrays["states"][share].copy()
                found = np.flatnonzero(ours != NO_FEATURE)
                ours[found] += shifts[self.blocks.block_numbers(ours[found])]
                new = slice(*np.searchsorted(check.numbers, [share.start, share.stop]))
                inside = check.numbers[new] - share.start
                ours[inside], known[inside] = positions[new], check.states[new]
                yield from gather_object([_Piece(ours, known, *bad.between(share.start, share.stop))])

        facts = {"table": table.version, "blocks": [os.path.basename(block.path) for block in blocks.blocks]}
        if all(gather_object([path is not None])):
            all_pieces, is_written = pieces(), True
            try:
                if process.is_main_process:
                    with new_folder(path) as new:
                        _write(ArrayWriter(new), all_pieces, items, facts)
            except OSError as error:
                is_written = False
                logger.warning("%s cannot be written (%s): the next start looks the features up again.", path, error)
            deque(all_pieces, maxlen=0)  # the other processes only contribute
            if all(gather_object([is_written])):
                os.listdir(folder)  # makes a network file system look again
                index = FeatureIndex.open(folder, lambda _: blocks, table)
                if len(set(gather_object([index and index.arrays.version]))) == 1 and index:
                    return index
        return FeatureIndex(blocks, _write(ArrayWriter(), pieces(), items, facts))


def _write(writer: ArrayWriter, pieces: Iterable[_Piece], items: Items, facts: dict) -> FlatArrays | None:
    end, bad = 0, []
    writer.append("reason_offsets", np.zeros(1, np.int64))
    for piece in pieces:
        for name in ("positions", "states", "bad_images", "reasons"):
            writer.append(name, getattr(piece, name))
        writer.append("reason_offsets", end + piece.reason_lengths.cumsum())
        end += len(piece.reasons)
        bad.append(piece.bad_images)
    bad = np.concatenate(bad)
    writer.append("bad_rows", bad[:0])
    for first in range(0, len(items.numbers) if len(bad) else 0, ROWS_AT_ONCE):
        numbers = items.numbers[first : first + ROWS_AT_ONCE]
        writer.append("bad_rows", first + np.flatnonzero(np.isin(numbers, bad)))
    return writer.finish(facts)


class BadRows(Mapping[int, str]):
    """Row → reason, of the rows of a table whose image has no feature; read when they are asked for."""

    def __init__(self, arrays: FlatArrays, image_numbers: np.ndarray):
        self._rows, self._images, self._numbers = arrays["bad_rows"], arrays["bad_images"], image_numbers
        self._reasons = RaggedArray(arrays["reasons"], arrays["reason_offsets"])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return map(int, self._rows)

    def __getitem__(self, row: int) -> str:
        place = np.searchsorted(self._rows, row)
        if place == len(self._rows) or self._rows[place] != row:
            raise KeyError(row)
        return self._reasons[np.searchsorted(self._images, self._numbers[row])].tobytes().decode()


def _index_path(folder: str, table: PairTable) -> str | None:
    return table.path and os.path.join(folder, f"table-{os.path.basename(table.path)}")
