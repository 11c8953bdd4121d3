"""Measures how long the device waits for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DataWait:
    """Sums up the time that the device is idle while the host runs a block of code.

    The host runs ahead of a GPU, which may still have work queued while the host waits for data. So a CUDA event is
    recorded before the block and another one after it: the GPU reaches the first when its queued work is done, and the
    second when the host has submitted more.
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
        """Seconds since the last call. Waits for the device."""
        seconds, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        if events:
            events[-1][1].synchronize()
        return seconds + sum(before.elapsed_time(after) for before, after in events) / 1000
