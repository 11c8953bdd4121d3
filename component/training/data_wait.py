"""How long the device has waited for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DataWait:
    """Adds up the time of what it is put around, as the device sees it.

    The host runs ahead of a GPU, which may have work left while the host waits. So the GPU notes its time before and
    behind: it comes to the one when its work is done, and to the other when there is more.
    """

    def __init__(self, device: torch.device):
        self._is_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        if not self._is_gpu:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)

    def take(self) -> float:
        """The seconds since it was last asked. Waits for the device."""
        seconds, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        if events:
            events[-1][1].synchronize()
        return seconds + sum(before.elapsed_time(behind) for before, behind in events) / 1000
