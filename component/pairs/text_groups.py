"""Groups of texts of similar length that go through the tower together, so that little is computed on padding.

A group is padded to its longest text: more groups need less padding, but each group has a cost of its own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class GroupCosts(NamedTuple):
    """The costs of running the tower on groups of texts.

    Attributes:
        group: cost of a group in addition to its tokens, in tokens; inf: as few groups as possible.
        multiple: texts are padded to a multiple of this number of tokens.
    """

    group: float = math.inf
    multiple: int = 1


FEWEST_GROUPS = GroupCosts()
# Measured by benchmarks/train_bench.py on 2 cores: 50 tokens for BERT-base, 60 for small, 130 for the demo's tower and
# 230 for tiny.
CPU_COSTS = GroupCosts(group=100)
# Arithmetic, not measured: forward and backward of BERT-base launch some 600 kernels at 5 µs each, and compute a token
# in 2 µs (0.51 GFLOP at 250 TFLOP/s). Tensor cores work on tiles of 8, and a compiler so sees few shapes.
GPU_COSTS = GroupCosts(group=1500, multiple=8)


def group_by_cost(
    lengths: Sequence[int], costs: GroupCosts = FEWEST_GROUPS, largest: int | None = None
) -> list[tuple[np.ndarray, int]]:
    """Split texts into the groups that cost least: tokens including padding, plus the cost of each group.

    Args:
        lengths: tokens of each text, at least 1.
        largest: most texts in a group.

    Returns:
        (rows, width) of each group: its texts, and the tokens they are padded to. The longest texts come first, so
        that a group that does not fit into memory fails at the start.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    widths = -(-lengths[order] // costs.multiple) * costs.multiple
    starts = _cheapest_starts(widths, costs.group, min(largest or len(widths), len(widths)))
    return list(zip(np.split(order, starts[1:]), widths[starts].tolist(), strict=True))


def _cheapest_starts(widths: np.ndarray, group_cost: float, largest: int) -> list[int]:
    """The starts of the groups, for (n,) descending widths.

    A cut between two texts of the same width can move towards the longer ones, which saves padding in the group before
    it, until it reaches the first text of that width or the group after it is full. So between two cuts at first texts
    there is one group of the remainder, followed by full groups, and the best cuts at first texts are a shortest path
    over the distinct widths.
    """
    group_cost = min(group_cost, widths[0] * len(widths))  # inf: more than any padding
    cuts = np.append(np.flatnonzero(np.diff(widths, prepend=0)), len(widths))
    # The sum of each width and every `largest`th after it.
    steps = np.pad(widths, (0, largest + -len(widths) % largest)).reshape(-1, largest)
    after = steps[::-1].cumsum(axis=0)[::-1].ravel()
    begin, end = cuts[:-1, None], cuts
    left_over = (end - begin - 1) % largest + 1
    groups = (end - begin - left_over) // largest + 1
    costs = groups * group_cost + left_over * widths[begin] + largest * (after[begin + left_over] - after[end])
    best, next_cut = np.zeros(len(cuts)), np.empty(len(cuts) - 1, int)
    for i in reversed(range(len(next_cut))):
        sums = costs[i, i + 1 :] + best[i + 1 :]
        next_cut[i] = i + 1 + sums.argmin()
        best[i] = sums.min()
    starts, i = [], 0
    while i < len(next_cut):
        starts += [cuts[i], *range(cuts[i] + left_over[i, next_cut[i]], cuts[next_cut[i]], largest)]
        i = next_cut[i]
    return starts


def costs_on(device_type: str) -> GroupCosts:
    return CPU_COSTS if device_type == "cpu" else GPU_COSTS


def pad_texts(tokens: np.ndarray, lengths: np.ndarray, width: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (n, width), of n texts whose tokens are concatenated."""
    is_token = torch.arange(width) < torch.from_numpy(lengths)[:, None]
    input_ids = torch.full(is_token.shape, pad_token_id)
    input_ids[is_token] = torch.from_numpy(tokens).long()
    return input_ids, is_token.long()
