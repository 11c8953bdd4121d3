"""Which images a process is decoding, in memory shared with the main process: an image can kill its process."""

import contextlib
import queue
import threading
from collections.abc import Iterator, MutableSequence

from component.download.job import Job

NOTHING = 0  # content of a free slot


class DecodingSlots:
    """Slots for the images that are being decoded; each holds the number of a job, or NOTHING.

    An image that may have killed a process is decoded alone.
    """

    def __init__(self, numbers: MutableSequence[int]):
        self._numbers, self._gate = numbers, threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(len(numbers)):
            self._free.put(slot)

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[None]:
        """Hold a slot, or all of them."""
        with self._gate:  # while a job waits for all slots, no other may enter
            slots = [self._free.get() for _ in range(len(self._numbers) if job.kills else 1)]
        self._numbers[slots[0]] = job.number
        try:
            yield
        finally:
            self._numbers[slots[0]] = NOTHING
            for slot in slots:
                self._free.put(slot)
