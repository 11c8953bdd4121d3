"""The features of a table's texts: each text goes through the locked tower once, not once per epoch."""

from collections.abc import Callable

from accelerate import PartialState
from torch import Tensor

from component.pairs.pair_table import PairTable
from component.pairs.text_groups import costs_on, group_by_cost, pad_texts
from component.training.feature_cache import FeatureCache, KeysAndFeatures
from component.training.feature_filling import Features, filled_index
from component.training.feature_items import ItemsToCheck, texts_of
from component.training.reasons import Reasons

AT_ONCE = 4096  # texts that are sorted by length


def text_features(
    table: PairTable,
    cache: FeatureCache,
    encode: Callable[[Tensor, Tensor], Tensor],
    pad_token_id: int,
    batch_size: int,
    show_progress: bool = True,
) -> Features:
    """Compute the features that the cache does not have, and return those of all rows.

    With several processes, all call this together and each computes a share.

    Args:
        encode: the tower, input_ids and attention_mask (B, T) → (B, width).
        batch_size: most texts per call of `encode`; texts of similar length are encoded together.

    Raises:
        ValueError: a feature is not a finite number; or as `filled_index`.
        RunFailed, OSError: as `filled_index`.
    """

    def compute(new: ItemsToCheck, bad: Reasons, count: Callable[[int], object]) -> KeysAndFeatures:
        device = PartialState().device.type
        for first in range(0, len(new.numbers), AT_ONCE):
            rows, keys = (array[first : first + AT_ONCE] for array in (new.numbers, new.keys))
            for group, width in group_by_cost(table.tokens(rows)[1], costs_on(device), batch_size):
                features = encode(*pad_texts(*table.tokens(rows[group]), width, pad_token_id))
                if not features.isfinite().all():
                    raise ValueError(
                        f"{table.file}: the text tower gives NaN for some of the texts: its weights are damaged, or "
                        "too large for half precision."
                    )
                yield keys[group], features.to("cpu", cache.dtype)
                count(len(group))

    items = texts_of(table)
    return Features(items.numbers, filled_index(items, cache, compute, show_progress))
