"""Batches of like lengths: little padding, and still random."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from component.sampler import LengthGroupedSampler

LENGTHS = np.random.default_rng(0).integers(7, 43, 30_000)  # [CLS], 5 to 40 characters, [SEP]


def order(lengths=LENGTHS, batch_size: int = 128, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return np.array(list(LengthGroupedSampler(lengths, batch_size, seed, lambda: epoch)))


def batches(lengths=LENGTHS, batch_size: int = 128, **options) -> list[np.ndarray]:
    indices = order(lengths, batch_size, **options)
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def padding(batches: list[np.ndarray]) -> float:
    return 1 - LENGTHS[np.concatenate(batches)].sum() / sum(LENGTHS[batch].max() * len(batch) for batch in batches)


@pytest.mark.parametrize("count", [1, 100, 128, 129, 30_000])
def test_every_pair_comes_once_an_epoch(count):
    assert sorted(order(LENGTHS[:count])) == list(range(count))


def test_seed_and_epoch_decide_the_order():
    assert (order() == order()).all()
    assert (order() != order(epoch=1)).any() and (order() != order(seed=1)).any()


@pytest.mark.parametrize("batch_size", [32, 768])
def test_under_a_tenth_is_padding(batch_size):
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(LENGTHS)), len(LENGTHS) // batch_size)
    assert padding(shuffled) > 0.35
    assert padding(batches(batch_size=batch_size)) < 0.1


def test_long_and_short_batches_come_in_random_order():
    means = np.array([LENGTHS[batch].mean() for batch in batches()])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_a_pair_meets_others_in_every_epoch():
    companions = [next(set(batch) for batch in batches(epoch=epoch) if 0 in batch) for epoch in range(2)]
    assert len(companions[0] & companions[1]) < 40  # of 128, about 1,400 pairs having nearly this length


def test_ranks_share_each_batch_of_like_lengths():
    def rank(index: int) -> list[list[int]]:
        sampler = LengthGroupedSampler(LENGTHS[:1024], 64, 0, lambda: 0)
        return list(BatchSamplerShard(BatchSampler(sampler, 32, drop_last=False), 2, index))

    together = [np.array(one + other) for one, other in zip(rank(0), rank(1), strict=True)]
    assert sorted(np.concatenate(together)) == list(range(1024))
    assert padding(together) < 0.1
