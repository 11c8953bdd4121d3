"""The order of the pairs in an epoch, and which process takes which of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from component.dataset import SeededIndices
from component.training.permutation import Permutation

ORDER = "feistel"  # recorded in checkpoints; older ones, which stored the whole order, have no such entry


@dataclass(frozen=True)
class LocalBatch(SeededIndices):
    """What one process takes of one global batch. Computed on demand: batches that a resumed run skips cost nothing.

    Args:
        order: of the epoch; None: the order of the table.
        positions: of the global batch in this order.
        seed_of: seed, epoch, number of the batch in it, and rank of the process.
        rank, world_size: of the process.
    """

    order: Permutation | None
    positions: range
    seed_of: tuple[int, int, int, int]
    rank: int
    world_size: int

    @property
    def indices(self) -> np.ndarray:
        positions = np.array_split(np.array(self.positions, np.int64), self.world_size)[self.rank]
        return positions if self.order is None else self.order[positions]

    @property
    def seed(self) -> int:
        return int(np.random.SeedSequence(self.seed_of).generate_state(1, np.uint64)[0])

    @property
    def epoch_seed(self) -> tuple[int, int]:
        return self.seed_of[:2]


class SharedBatches(Sampler[LocalBatch]):
    """Batch sampler: what one process takes of each global batch. Every pair is in one batch of an epoch.

    The global batches do not depend on the number of processes. (accelerate's sharding does not give that: it fills
    up the last batch with pairs of the first one, which become negatives of themselves.)

    Each local batch has a seed of its own for random crops and flips, and that of its epoch for changes of texts, so
    that a resumed run draws what an uninterrupted one would have drawn.

    Args:
        size: pairs in the dataset.
        batch_size: pairs of all processes together. Each takes an equal number of them, give or take one; of a short
            last batch possibly none.
        seed: the same seed and epoch give the same order in every process.
        epoch: called at the start of each pass.
        shuffle: otherwise the order is that of the dataset.
        drop_last: omit the last batch if it is not full.
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

    def __iter__(self) -> Iterator[LocalBatch]:
        epoch = self.epoch()
        return (self.local(number, epoch) for number in range(len(self)))

    def local(self, number: int, epoch: int = 0) -> LocalBatch:
        """What this process takes of batch `number`; nothing if that is past the last one."""
        order = Permutation(self.size, (self.seed, epoch)) if self.shuffle else None
        first, last = (min(edge * self.batch_size, self.size) for edge in (number, number + 1))
        return LocalBatch(order, range(first, last), (self.seed, epoch, number, self.rank), self.rank, self.world_size)
