"""Fills a feature cache with what the items of a table lack, together with all processes."""

from collections.abc import Callable

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from component.ground.file_state import MISSING
from component.pairs.image_source import GoodRows
from component.training.feature_blocks import NO_FEATURE
from component.training.feature_cache import FeatureCache, KeysAndFeatures
from component.training.feature_index import FeatureIndex, shares
from component.training.feature_items import Items, ItemsToCheck
from component.training.fill_progress import FillProgress
from component.training.interruption import naming_lost_process
from component.training.reasons import Reasons


class Features:
    """The features of a table's rows, which must have one: (m,) rows → (m, width)."""

    def __init__(self, numbers: np.ndarray | GoodRows, index: FeatureIndex):
        self._numbers, self._index = numbers, index
        self.bytes_per_row = index.blocks.bytes_per_feature

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return self._index.blocks[self._index.arrays["positions"][self._numbers[rows]]]


def filled_index(
    items: Items,
    cache: FeatureCache,
    compute: Callable[[ItemsToCheck, Reasons, Callable[[int], object]], KeysAndFeatures],
    show_progress: bool,
) -> FeatureIndex:
    """The index of the cache, after computing the features that it did not have.

    With several processes, all call this together and each computes a share. One that is late may take any time.

    Items that cannot have a feature are not recorded in the cache: the next run tries them again.

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
    new = check.where(cache.blocks().find(check.keys) == NO_FEATURE)
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
    if not all(gather_object([index.has(check, positions)])):
        index = index.updated(cache.folder, items, blocks, check, positions, bad)
    return index


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
