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
        # In a row, up to the beginning of the window: without an image here, without training anywhere.
        self._blind_batches = self._dead_batches = 0

    def add(self, pairs: int, loss: Tensor) -> None:
        """A batch of so many good pairs, and its loss."""
        self._pairs.append(pairs)
        self._losses.append(loss.detach())

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._start += seconds

    def logs(self, world_size: int, waited: float) -> dict[str, float]:
        """The mean of ln(pairs), which is the loss of a model that knows nothing, pairs per second, and which share of
        the time went by in waiting for data: of the process that waited longest, as all wait for that one. All
        processes call it together.

        Args:
            waited: seconds, of this process.
        """
        seconds = time.perf_counter() - self._start
        ln_batches = [math.log(pairs * world_size) for pairs in self._pairs if pairs]
        return {
            "ln_batch": float(np.mean(ln_batches)) if ln_batches else 0.0,
            "pairs_per_second": sum(self._pairs) * world_size / seconds,
            "data_wait": max(gather_object([waited])) / seconds,
        }

    @property
    def is_dead(self) -> bool:
        """The last batches that this process knows of were no training."""
        if not self._pairs:
            return self._blind_batches + self._dead_batches > 0
        return not any(loss.item() and loss.isfinite() for loss in self._losses)

    def close(self, can_read_an_image: Callable[[], bool]) -> str | None:
        """Begin the next window; why this one was no training, if it was none. All processes call it together.

        Args:
            can_read_an_image: asked where this process had none in the batches, which may be chance.
        """
        self._blind_batches = _in_a_row(self._blind_batches, np.array(self._pairs) == 0)
        is_blind = self._pairs and self._blind_batches >= max(len(self._pairs), FEWEST_DEAD_BATCHES)
        # A disk may be gone for one process alone: its node's.
        blind = self._blind_batches if is_blind and not can_read_an_image() else 0
        processes = gather_object([(blind, self._pairs, [loss.item() for loss in self._losses])])
        self._pairs, self._losses, self._start = [], [], time.perf_counter()
        blind, pairs, losses = (np.array(column) for column in zip(*processes, strict=True))
        if blind.any():
            where = "" if blind.all() else f" by process {', '.join(map(str, np.flatnonzero(blind)))}"
            return f"no picture could be read{where} in the last {blind.max()} batches"
        has_no_image = pairs.sum(axis=0) == 0  # pairs and losses: (processes, batches)
        is_not_finite = ~np.isfinite(losses).all(axis=0)
        # A single pair has no negatives, so that its loss of 0 says nothing.
        is_zero = (losses == 0).all(axis=0) & (pairs.sum(axis=0) > 1)
        is_dead = has_no_image | is_not_finite | is_zero
        self._dead_batches = _in_a_row(self._dead_batches, is_dead)
        if self._dead_batches < max(len(is_dead), FEWEST_DEAD_BATCHES) or has_no_image.all():
            return None
        loss = "exactly 0" if is_zero.all() else "no finite number, or 0,"
        return f"the loss was {loss} in the last {self._dead_batches} batches"


def _in_a_row(before: int, flags: np.ndarray) -> int:
    """So many flags are set in a row up to the end, where so many were before these."""
    return before + len(flags) if flags.all() else int(flags[::-1].argmin())
