"""The order in which an epoch goes through the pairs, and which process takes which."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from component.dataset import SeededIndices
from component.training.permutation import Permutation

ORDER = "feistel"  # the name of the order of `Permutation`, in checkpoints; older ones, which stored it, have none


@dataclass(frozen=True)
class Part(SeededIndices):
    """What one process has of one batch, worked out where it is asked for: a batch that is skipped costs nothing.

    Args:
        order: of the epoch; None: that of the table.
        places: of the whole batch in this order.
        seed_of: numbers that this part alone has.
        rank, world_size: of the process.
    """

    order: Permutation | None
    places: range
    seed_of: tuple[int, ...]
    rank: int
    world_size: int

    @property
    def indices(self) -> np.ndarray:
        mine = np.array_split(np.array(self.places, np.int64), self.world_size)[self.rank]
        return mine if self.order is None else self.order[mine]

    @property
    def seed(self) -> int:
        return int(np.random.SeedSequence(self.seed_of).generate_state(1, np.uint64)[0])


class SharedBatches(Sampler[Part]):
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

    def __iter__(self) -> Iterator[Part]:
        epoch = self.epoch()
        return (self.part(number, epoch) for number in range(len(self)))

    def part(self, number: int, epoch: int = 0) -> Part:
        """What this process has of a batch; of one behind the last, nothing."""
        order = Permutation(self.size, (self.seed, epoch)) if self.shuffle else None
        first, last = (min(edge * self.batch_size, self.size) for edge in (number, number + 1))
        return Part(order, range(first, last), (self.seed, epoch, number, self.rank), self.rank, self.world_size)
