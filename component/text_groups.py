"""Which texts go through the tower together: those of like length, so that little is computed on padding."""

from collections.abc import Sequence

import numpy as np


def group_by_length(lengths: Sequence[int], size: int, most_padding: float = 1.0) -> list[np.ndarray]:
    """Put rows of like length together, for a tower that pads each group to its longest text.

    Args:
        lengths: tokens of each row, from 1.
        size: rows per group at most.
        most_padding: a group ends before padding would be this share of it.

    Returns:
        Groups of rows, every row in one of them. The longest come first, because a group that does not fit the memory
        should say so at the start.
    """
    lengths = np.asarray(lengths)
    order, groups = np.argsort(-lengths, kind="stable"), []
    while len(order):
        head = lengths[order[:size]]
        tokens = head.cumsum() / (head[0] * np.arange(1, len(head) + 1))  # their share, were the group to end there
        too_much = np.flatnonzero(tokens <= 1 - most_padding)
        end = too_much[0] if len(too_much) else len(head)
        groups.append(order[:end])
        order = order[end:]
    return groups
