"""The computed order of an epoch is a permutation, and a random one."""

from collections import Counter

import numpy as np
import pytest

from component.training.permutation import Permutation


def order(size: int, *seed: int) -> np.ndarray:
    return Permutation(size, seed or (0,))[np.arange(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 99, 100, 101, 10_007, 2**16 + 1])
def test_every_number_occurs_once(size):
    assert np.array_equal(np.sort(order(size)), np.arange(size))


def test_an_element_is_the_same_alone_and_in_an_array():
    permutation = Permutation(10**12, (1, 2))
    positions = np.array([10**12 - 1, 0, 5, 123_456_789_012])
    together = permutation[positions]
    assert len(set(together.tolist())) == 4 and together.min() >= 0 and together.max() < 10**12
    assert together.tolist() == [permutation[np.array([position])].item() for position in positions]


def test_the_order_is_the_same_on_every_machine():
    assert order(10, 3, 1).tolist() == [8, 9, 5, 7, 3, 1, 0, 4, 2, 6]


def test_seeds_and_epochs_give_other_orders():
    orders = [tuple(order(1000, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    same_position = [np.mean(np.array(one) == other) for one in orders for other in orders if one is not other]
    assert max(same_position) < 0.01  # by chance, 1 in 1000


@pytest.mark.parametrize("size", [3, 4])
def test_all_orders_of_a_few_elements_are_about_equally_frequent(size):
    counts = Counter(tuple(order(size, seed)) for seed in range(4800))
    expected = 4800 / len(counts)
    assert len(counts) == {3: 6, 4: 24}[size]
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("distance", [1, 2, 1024])
def test_neighbours_are_shuffled_independently(distance):
    """The distance between two neighbours after shuffling is uniformly distributed."""
    size, bins = 200_000, 50
    jumps = np.histogram((np.roll(order(size), distance) - order(size)) % size, bins, (0, size))[0]
    chi_squared = ((jumps - size / bins) ** 2 / (size / bins)).sum()
    assert chi_squared < 49 + 5 * (2 * 49) ** 0.5


def test_a_batch_is_a_sample_of_the_whole_table():
    first = Permutation(10**9, (0, 0))[np.arange(50_000)]
    counts = np.histogram(first, 50, (0, 10**9))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 49 + 5 * (2 * 49) ** 0.5
