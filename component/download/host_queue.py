"""A queue that is fair to hosts: no host gets more than its share of the threads, and none waits for a slow one."""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Any


class _Host:
    __slots__ = ("waiting", "running", "resume_at", "in_line")

    def __init__(self):
        self.waiting: deque = deque()
        self.running = 0
        self.resume_at = 0.0  # monotonic time before which nothing starts
        self.in_line = False


class HostQueue:
    """Items wait by host; hosts with something to do and a free slot stand in one line and are served in turn.

    Waiting costs no thread: an item put with a delay, or a paused host, comes back by itself when its time is up.

    Args:
        per_host: items of one host that may run at the same time.
    """

    def __init__(self, per_host: int):
        self.per_host = per_host
        self._hosts: dict[Hashable, _Host] = {}
        self._line: deque[Hashable] = deque()
        self._timers: list[tuple[float, int, Hashable, Any]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, host: Hashable, item: Any, delay: float = 0.0) -> None:
        """Add an item that may start in `delay` seconds; never blocks."""
        with self._changed:
            if delay > 0:
                self._wake_at(time.monotonic() + delay, host, item)
            else:
                self._hosts.setdefault(host, _Host()).waiting.append(item)
                self._line_up(host)

    def pause(self, host: Hashable, seconds: float) -> None:
        """Start nothing of this host for a while; what is running runs on."""
        with self._changed:
            state = self._hosts.setdefault(host, _Host())
            state.resume_at = max(state.resume_at, time.monotonic() + seconds)
            self._wake_at(state.resume_at, host, None)

    def take(self) -> Any:
        """The next item, waiting for it as long as it takes; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    _, _, host, item = heapq.heappop(self._timers)
                    if item is not None:
                        self._hosts.setdefault(host, _Host()).waiting.append(item)
                    self._line_up(host)
                if not self._line:
                    self._changed.wait(self._timers[0][0] - now if self._timers else None)
                    continue
                host = self._line.popleft()
                state = self._hosts[host]
                state.in_line = False
                if state.resume_at > now:  # paused while in line; its timer brings it back
                    continue
                state.running += 1
                item = state.waiting.popleft()
                self._line_up(host)
                return item
            return None

    def done(self, host: Hashable) -> None:
        """Give back the slot of an item that was taken."""
        with self._changed:
            self._hosts[host].running -= 1
            self._line_up(host)

    def close(self) -> None:
        """Send all takers home; what waits is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wake_at(self, moment: float, host: Hashable, item: Any) -> None:
        heapq.heappush(self._timers, (moment, next(self._order), host, item))
        self._changed.notify()  # a taker may be asleep until a later timer

    def _line_up(self, host: Hashable) -> None:
        state = self._hosts.get(host)
        if state is None or state.in_line:
            return
        if state.waiting:
            if state.running < self.per_host and state.resume_at <= time.monotonic():
                state.in_line = True
                self._line.append(host)
                self._changed.notify()
        elif not state.running and state.resume_at <= time.monotonic():
            del self._hosts[host]  # a million hosts pass through; only those at work are remembered
