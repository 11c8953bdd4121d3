"""What happened in training since the last log, and whether the model could learn from it."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from component.metrics import mean_cosine

# Fewer consecutive batches that teach nothing may be chance, even when every step is logged.
MIN_DEAD_BATCHES = 3


class LogWindow:
    """The training batches of this process since the last log."""

    def __init__(self):
        self._pairs: list[int] = []
        self._losses: list[Tensor] = []
        self._start = time.perf_counter()
        self._logit_scale: Tensor | None = None
        self._embeds: dict[str, Tensor] = {}
        self._distill_loss: Tensor | None = None
        # Length of the run of batches up to the start of the window that had no image in this process (blind), or
        # from which no process could learn (dead).
        self._blind_batches = self._dead_batches = 0

    def observe(
        self, logit_scale: Tensor, image_embeds: Tensor, text_embeds: Tensor, distill_loss: Tensor | None = None
    ) -> None:
        """Keep what the model computed for a batch; only the last batch counts.

        Args:
            logit_scale: scalar, exponentiated.
            image_embeds, text_embeds: (B, D), L2-normalised, of this process.
            distill_loss: the part of the loss that is the distance of these from a teacher's, if there is one.
        """
        self._distill_loss = None if distill_loss is None else distill_loss.detach()
        self._logit_scale = logit_scale.detach()
        self._embeds = {"image": image_embeds.detach(), "text": text_embeds.detach()}

    def add(self, pairs: int, loss: Tensor) -> None:
        """Count a batch by its number of good pairs and its loss."""
        self._pairs.append(pairs)
        self._losses.append(loss.detach())

    def exclude(self, seconds: float) -> None:
        """Subtract time that was not spent on training."""
        self._start += seconds

    def logs(self, world_size: int, waited: float) -> dict[str, float]:
        """Figures for the log. All processes call it together.

        Args:
            waited: seconds that this process waited for data.

        Returns:
            ln_batch, the mean of ln(pairs), which is the loss of a model that knows nothing; pairs_per_second;
            data_wait, the share of the time that the slowest process waited for data, as the others wait for it;
            logit_scale; image_cosine and text_cosine, see `mean_cosine`; with a teacher distill_loss, which is part of
            the loss.
        """
        seconds = time.perf_counter() - self._start
        ln_batches = [math.log(pairs * world_size) for pairs in self._pairs if pairs]
        return {
            "ln_batch": float(np.mean(ln_batches)) if ln_batches else 0.0,
            "pairs_per_second": sum(self._pairs) * world_size / seconds,
            "data_wait": max(gather_object([waited])) / seconds,
            "logit_scale": self._logit_scale.item(),
            **{f"{kind}_cosine": mean_cosine(embeds) for kind, embeds in self._embeds.items() if len(embeds) > 1},
            **({} if self._distill_loss is None else {"distill_loss": self._distill_loss.item()}),
        }

    @property
    def learns(self) -> bool:
        """Whether the model learnt from some recent batch, as far as this process knows."""
        if not self._pairs:
            return self._blind_batches + self._dead_batches == 0
        return any(loss.item() and loss.isfinite() for loss in self._losses)

    def close(self, can_read_an_image: Callable[[], bool]) -> str | None:
        """Begin the next window. All processes call it together.

        Args:
            can_read_an_image: called when this process had no image in its batches, which may be chance.

        Returns:
            Why the model learnt nothing in this window, or None if it did.
        """
        self._blind_batches = _trailing(np.array(self._pairs) == 0, self._blind_batches)
        is_blind = self._pairs and self._blind_batches >= max(len(self._pairs), MIN_DEAD_BATCHES)
        # A disk may fail for one process alone: that of its node.
        blind = self._blind_batches if is_blind and not can_read_an_image() else 0
        losses = torch.stack(self._losses).tolist() if self._losses else []  # one wait for the device
        processes = gather_object([(blind, self._pairs, losses)])
        self._pairs, self._losses, self._start = [], [], time.perf_counter()
        blind, pairs, losses = (np.array(column) for column in zip(*processes, strict=True))
        if blind.any():
            where = "" if blind.all() else f" by process {', '.join(map(str, np.flatnonzero(blind)))}"
            return f"no image could be read{where} in the last {blind.max()} batches"
        has_no_image = pairs.sum(axis=0) == 0  # pairs and losses: (processes, batches)
        is_not_finite = ~np.isfinite(losses).all(axis=0)
        # The loss of a single pair is always 0, because it has no negatives.
        is_zero = (losses == 0).all(axis=0) & (pairs.sum(axis=0) > 1)
        is_dead = has_no_image | is_not_finite | is_zero
        self._dead_batches = _trailing(is_dead, self._dead_batches)
        if self._dead_batches < max(len(is_dead), MIN_DEAD_BATCHES) or has_no_image.all():
            return None
        loss = "exactly 0" if is_zero.all() else "NaN, infinite or 0"
        return f"the loss was {loss} in the last {self._dead_batches} batches"


def _trailing(flags: np.ndarray, before: int) -> int:
    """Length of the run of True values that ends at the last element, including `before` from the previous window."""
    return before + len(flags) if flags.all() else int(flags[::-1].argmin())
