"""The order in which an epoch goes through the pairs."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

MEGABATCH = 50  # batches that are sorted together; each text has so many batches that it may land in


class LengthGroupedSampler(Sampler[int]):
    """Batches of texts of like length, which need little padding, in an order that is otherwise random.

    Shuffles all pairs, sorts each run of `MEGABATCH` batches by length, cuts it into batches and shuffles these.
    (transformers' sampler of the same name leaves them sorted, so that each run trains from long texts to short ones.)
    Pairs that do not fill a batch come last.

    Args:
        lengths: (N,) tokens of each text.
        batch_size: of all processes together, which take their shares of it in turn.
        seed: the same seed and epoch give the same order, on every process.
        epoch: asked at the beginning of each pass.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch()])
        order = random.permutation(len(self))
        whole = len(self) // self.batch_size * self.batch_size
        order, rest = order[:whole], order[whole:]
        megabatches = np.arange(whole) // (MEGABATCH * self.batch_size)
        order = order[np.lexsort((self.lengths[order], megabatches))]
        batches = random.permutation(order.reshape(-1, self.batch_size))
        return iter([*batches.ravel().tolist(), *rest.tolist()])
