"""What of a table has features: its distinct images, or the texts of its rows."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from component.pairs.image_source import GoodRows
from component.pairs.pair_table import PairTable


class Items(NamedTuple):
    """n images or texts of a table.

    Attributes:
        name: "image" or "text".
        rows: (n,) rising, the first row of each.
        numbers: (rows of the table,), the item of each row: an index into `rows`.
        states: (m,) rows → (m,) int64; an item whose state has changed is computed again.
        keys: (m,) rows and their states → (m,) int64, by which a cache knows the items.
    """

    name: str
    table: PairTable
    rows: np.ndarray | GoodRows
    numbers: np.ndarray | GoodRows
    states: Callable[[np.ndarray], np.ndarray]
    keys: Callable[[np.ndarray, np.ndarray], np.ndarray]


def images_of(table: PairTable) -> Items:
    """The images, each once, known by file name and state of the file."""
    return Items("image", table, table.first_rows, table.image_numbers, table.image_states, table.image_keys)


def texts_of(table: PairTable) -> Items:
    """The text of each row, known by its id. (A table does not number its distinct texts.)"""
    every = GoodRows(len(table))
    return Items(
        *("text", table, every, every),
        states=lambda rows: np.zeros(len(rows), np.int64),
        keys=lambda rows, _: table.text_ids[rows].view(np.int64),
    )


class ItemsToCheck(NamedTuple):
    """Items of a table that have changed since the index was written, or have no feature: n of them, rising.

    Attributes:
        numbers, keys, states: (n,), see `Items`.
    """

    numbers: np.ndarray
    keys: np.ndarray
    states: np.ndarray

    def where(self, chosen: np.ndarray) -> "ItemsToCheck":
        return ItemsToCheck(*(array[chosen] for array in self))

    @classmethod
    def join(cls, pieces: Iterable["ItemsToCheck"]) -> "ItemsToCheck":
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip(cls(empty, empty, empty), *pieces, strict=True)))
