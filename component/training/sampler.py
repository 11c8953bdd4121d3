"""The order in which an epoch goes through the pairs, and which process takes which."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from component.dataset import SeededIndices


class SharedBatches(Sampler[SeededIndices]):
    """The parts that one process has of global batches: each pair is in one part of one batch of an epoch.

    The batches do not depend on the number of processes. (accelerate's sharding does not give that: it fills up the
    last global batch with pairs of the first one, which then are negatives of themselves.)

    Each part comes with a seed for what is random in its images, which is that of this part of this batch of this
    epoch: a run that was resumed draws what it would have drawn.

    Args:
        size: pairs in the table.
        batch_size: of all processes together. The parts of a batch that is not full differ by one pair at most, and
            may be empty.
        seed: the same seed and epoch give the same order, on every process.
        epoch: asked at the beginning of each pass.
        shuffle: or else in the order of the table.
        drop_last: leave out a last batch that is not full.
        rank, world_size: of this process.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.size, self.batch_size, self.seed, self.epoch, self.shuffle = size, batch_size, seed, epoch, shuffle
        self.rank, self.world_size = rank, world_size
        self.num_batches = size // batch_size if drop_last else -(-size // batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[SeededIndices]:
        order, epoch = np.arange(self.size), self.epoch()
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        for number in range(len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            seed = np.random.SeedSequence([self.seed, epoch, number, self.rank]).generate_state(1, np.uint64)
            yield SeededIndices(np.array_split(batch, self.world_size)[self.rank], int(seed[0]))
