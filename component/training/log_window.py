"""What training did since its last log, and whether that was training at all."""

import math
import time
from collections.abc import Callable

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

# So many batches in a row that teach nothing are no accident, even where every step is logged.
FEWEST_DEAD_BATCHES = 3


class LogWindow:
    """The batches since the last log, of this process."""

    def __init__(self):
        self._pairs: list[int] = []
        self._losses: list[Tensor] = []
        self._start = time.perf_counter()
        self._dead_batches = 0  # in a row, up to the beginning of the window

    def add(self, pairs: int, loss: Tensor) -> None:
        """A batch of so many good pairs, and its loss."""
        self._pairs.append(pairs)
        self._losses.append(loss.detach())

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._start += seconds

    def logs(self, world_size: int) -> dict[str, float]:
        """The mean of ln(pairs), which is the loss of a model that knows nothing, and pairs per second."""
        seconds = time.perf_counter() - self._start
        ln_batches = [math.log(pairs * world_size) for pairs in self._pairs if pairs]
        return {
            "ln_batch": float(np.mean(ln_batches)) if ln_batches else 0.0,
            "pairs_per_second": sum(self._pairs) * world_size / seconds,
        }

    @property
    def is_dead(self) -> bool:
        """The last batches that this process knows of were no training."""
        if not self._pairs:
            return self._dead_batches > 0
        return not any(loss.item() and loss.isfinite() for loss in self._losses)

    def close(self, can_read_an_image: Callable[[], bool]) -> str | None:
        """Begin the next window; why this one was no training, if it was none. All processes call it together.

        Args:
            can_read_an_image: asked where there was none in the batches, which may be chance.
        """
        # (processes, batches)
        pairs = np.array(gather_object([self._pairs]))
        losses = np.array(gather_object([[loss.item() for loss in self._losses]]))
        self._pairs, self._losses, self._start = [], [], time.perf_counter()
        has_no_image = pairs.sum(axis=0) == 0
        is_not_finite = ~np.isfinite(losses).all(axis=0)
        # A single pair has no negatives, so that its loss of 0 says nothing.
        is_zero = (losses == 0).all(axis=0) & (pairs.sum(axis=0) > 1)
        is_dead = has_no_image | is_not_finite | is_zero
        if not is_dead.all():
            self._dead_batches = int(is_dead[::-1].argmin())
            return None
        self._dead_batches += len(is_dead)
        if not len(is_dead) or self._dead_batches < FEWEST_DEAD_BATCHES:
            return None
        batches = f"in the last {self._dead_batches} batches"
        if has_no_image.all():
            return None if any(gather_object([can_read_an_image()])) else f"no picture could be read {batches}"
        return f"the loss was {'exactly 0' if is_zero.all() else 'no finite number, or 0,'} {batches}"
