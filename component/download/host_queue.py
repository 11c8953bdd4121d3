"""A queue that is fair to hosts: each gets a share of the threads, and none waits for a slow or silent host."""

import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Any, NamedTuple

FIRST_PAUSE = 0.25  # seconds; pauses double while a host stays in trouble


class Trouble(NamedTuple):
    """How long, and for how many pauses, a host has given no usable answer."""

    seconds: float
    pauses: int


class _Host:
    __slots__ = (
        *("waiting", "delayed", "running", "limit", "in_line", "resume_at"),
        *("answered_at", "trouble_since", "pauses", "paused_at"),
    )

    def __init__(self, per_host: int):
        self.waiting: deque = deque()
        self.delayed = self.running = 0  # items that wait for their delay, and items in progress
        self.limit = float(per_host)  # items that may run at the same time
        self.in_line = False
        # Monotonic times, 0 for never.
        self.resume_at = 0.0  # no item starts before this
        self.answered_at = 0.0  # last usable answer
        self.trouble_since, self.pauses, self.paused_at = 0.0, 0, 0.0


class HostQueue:
    """A queue of items per host; hosts with waiting items and a free slot are served round-robin.

    Waiting uses no thread: delayed items and paused hosts become available when their time is up.

    Args:
        per_host: items of one host that may run at the same time.
        longest_pause: of a host in trouble, in seconds, unless the host asks for a longer one.
    """

    def __init__(self, per_host: int, longest_pause: float):
        self.per_host, self.longest_pause = per_host, longest_pause
        self._hosts: dict[Hashable, _Host] = {}
        self._line: deque[Hashable] = deque()
        self._timers: list[tuple[float, int, Hashable, Any]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, host: Hashable, item: Any, delay: float = 0.0) -> None:
        """Add an item; never blocks. After its delay, in seconds, an item goes before those already waiting."""
        with self._changed:
            state = self._state(host)
            if delay > 0:
                state.delayed += 1
                self._wake_at(time.monotonic() + delay, host, item)
            else:
                state.waiting.append(item)
                self._line_up(host)

    def take(self) -> Any:
        """Wait for the next item and return it; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    _, _, host, item = heapq.heappop(self._timers)
                    if item is not None:
                        state = self._state(host)
                        state.delayed -= 1
                        state.waiting.appendleft(item)
                    self._line_up(host)
                if not self._line:
                    self._changed.wait(self._timers[0][0] - now if self._timers else None)
                    continue
                host = self._line.popleft()
                state = self._hosts[host]
                state.in_line = False
                if state.resume_at > now or state.running >= max(1, int(state.limit)):  # changed since it was queued
                    continue
                state.running += 1
                item = state.waiting.popleft()
                self._line_up(host)
                return item
            return None

    def done(self, host: Hashable) -> None:
        """Release the slot of an item that was taken."""
        with self._changed:
            self._hosts[host].running -= 1
            self._line_up(host)

    def answered(self, host: Hashable) -> None:
        """A running item got a usable answer: end the trouble of the host and gradually restore its slots."""
        with self._changed:
            state = self._hosts[host]
            state.answered_at = time.monotonic()
            state.trouble_since, state.pauses = 0.0, 0
            state.limit = min(self.per_host, state.limit + 1 / state.limit)
            self._line_up(host)

    def has_answered_since(self, host: Hashable, moment: float) -> bool:
        """Whether `answered` was called for the host of a running item after a monotonic time."""
        with self._changed:
            return self._hosts[host].answered_at > moment

    def trouble(self, host: Hashable, sent_at: float, is_silence: bool, pause: float = 0.0) -> Trouble:
        """A running item got no answer, or a refusal: pause the host and reduce its slots.

        Pauses grow until the next usable answer. Items that started before the last pause are ignored.

        Args:
            sent_at: monotonic time at which the item started.
            is_silence: no answer. After the pause the host gets one item at a time, until it answers.
            pause: seconds the host asked for.
        """
        with self._changed:
            state, now = self._hosts[host], time.monotonic()
            state.trouble_since = state.trouble_since or sent_at
            if sent_at >= state.paused_at:
                pause = max(pause, min(self.longest_pause, FIRST_PAUSE * 2**state.pauses) * random.uniform(0.8, 1.2))
                state.pauses += 1
                state.paused_at = now
                state.limit = 1.0 if is_silence else max(1.0, state.limit / 2)
            if now + pause > state.resume_at:
                state.resume_at = now + pause
                self._wake_at(state.resume_at, host, None)
            return Trouble(now - state.trouble_since, state.pauses)

    def forgive(self, host: Hashable) -> None:
        """Restart the measured time of the host's trouble; its pauses are unchanged."""
        with self._changed:
            self._hosts[host].trouble_since = time.monotonic()

    def release(self, host: Hashable) -> None:
        """End the pause of a host and restore all its slots, because its items no longer need the host."""
        with self._changed:
            state = self._hosts[host]
            state.resume_at, state.limit = 0.0, float(self.per_host)
            self._line_up(host)

    def close(self) -> None:
        """End all waiting `take` calls and drop the waiting items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _state(self, host: Hashable) -> _Host:
        if host not in self._hosts:
            self._hosts[host] = _Host(self.per_host)
        return self._hosts[host]

    def _wake_at(self, moment: float, host: Hashable, item: Any) -> None:
        heapq.heappush(self._timers, (moment, next(self._order), host, item))
        self._changed.notify()  # a `take` may be sleeping until a later time

    def _line_up(self, host: Hashable) -> None:
        state = self._hosts.get(host)
        if state is None or state.in_line:
            return
        is_paused = state.resume_at > time.monotonic()
        if state.waiting:
            if state.running < max(1, int(state.limit)) and not is_paused:
                state.in_line = True
                self._line.append(host)
                self._changed.notify()
        elif not (state.running or state.delayed or is_paused):
            del self._hosts[host]  # of a million hosts, only those with items are remembered
