"""The processes of a run share the batches of an epoch."""

import pickle

import numpy as np
import pytest
from accelerate.data_loader import SkipBatchSampler

from component.training.permutation import Permutation
from component.training.sampler import SharedBatches


def epoch_of(size: int, batch_size: int, world_size: int, epoch: int = 0, **options) -> list[list[list[int]]]:
    """Global batches, each a list of what every process takes of it."""
    ranks = [
        SharedBatches(size, batch_size, epoch=lambda: epoch, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1 and len(list(ranks[0])) == len(ranks[0])
    return [[local.indices.tolist() for local in batch] for batch in zip(*ranks, strict=True)]


def pairs(batches) -> list[int]:
    return [pair for batch in batches for local in batch for pair in local]


@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 23, 24, 25, 100])
def test_every_pair_occurs_once_per_epoch(size, world_size):
    batches = epoch_of(size, 24, world_size)
    assert sorted(pairs(batches)) == list(range(size))
    for batch in batches:
        assert max(map(len, batch)) - min(map(len, batch)) <= 1


def test_the_batches_do_not_depend_on_the_number_of_processes():
    alone, shared = epoch_of(100, 24, 1), epoch_of(100, 24, 4)
    assert [sum(batch, []) for batch in shared] == [batch[0] for batch in alone]


def test_the_epoch_decides_the_order():
    assert pairs(epoch_of(100, 24, 1)) == pairs(epoch_of(100, 24, 1))
    assert pairs(epoch_of(100, 24, 1)) != pairs(epoch_of(100, 24, 1, epoch=1))


def test_sequential_order_without_a_short_last_batch():
    batches = epoch_of(23, 10, 2, shuffle=False, drop_last=True)
    assert batches == [[list(range(5)), list(range(5, 10))], [list(range(10, 15)), list(range(15, 20))]]


def test_the_order_is_as_random_as_it_looks():
    order = np.array(pairs(epoch_of(10_000, 100, 2)))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_every_local_batch_of_every_epoch_has_its_own_seed():
    seeds = [
        local.seed
        for epoch in range(3)
        for rank in range(2)
        for local in SharedBatches(100, 24, epoch=lambda epoch=epoch: epoch, rank=rank, world_size=2)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 5
    assert [local.seed for local in SharedBatches(100, 24, rank=1, world_size=2)] == seeds[5:10]


def test_a_resumed_run_does_not_compute_the_batches_that_it_skips(monkeypatch):
    asked = []
    monkeypatch.setattr(Permutation, "__getitem__", lambda order, positions: asked.append(positions) or positions)
    local = next(iter(SkipBatchSampler(SharedBatches(10**12, 1000), skip_batches=100_000)))
    assert not asked
    assert local.indices.tolist() == list(range(100_000_000, 100_001_000)) and len(asked) == 1


def test_a_local_batch_is_sent_to_a_worker_in_few_bytes():
    local = next(iter(SharedBatches(10**9, 65_536, epoch=lambda: 3, rank=1, world_size=2)))
    content = pickle.dumps(local)
    assert len(content) < 1000
    assert pickle.loads(content).seed == local.seed
    assert np.array_equal(pickle.loads(content).indices, local.indices)
