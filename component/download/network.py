"""Whether this machine's own network is up, tested with hosts that have answered before."""

import logging
import threading
import time

from urllib3.util import Url

from component.download.connection import accepts_connections
from component.download.job import DownloadSettings, IsNetworkAway

logger = logging.getLogger(__name__)

WITNESSES = 5  # number of hosts that are remembered, those that answered last
NETWORK_PATIENCE = 10  # as a multiple of the patience with a host
FRESH_SECONDS = 0.05  # a more recent answer proves that the network is up


class Network:
    """Tells a silent host from a network that is down: if no other host accepts connections, the network is down.

    With a proxy, the proxy is asked. When no other host has answered yet, only a failure that did not leave this
    machine counts against the network. One object serves all threads.
    """

    def __init__(self, settings: DownloadSettings):
        self._settings = settings
        self._lock = threading.Lock()
        self._witnesses: dict[str, Url] = {}  # in the order of their last answers
        self._answered_at = time.monotonic()
        self._is_away = False

    def answered(self, address: Url) -> None:
        """A host has answered a request."""
        with self._lock:
            if self._is_away:
                logger.warning("A host answers again, after %.0f s.", time.monotonic() - self._answered_at)
            self._answered_at, self._is_away = time.monotonic(), False
            self._witnesses.pop(address.netloc, None)
            self._witnesses[address.netloc] = address
            if len(self._witnesses) > WITNESSES:
                del self._witnesses[next(iter(self._witnesses))]

    def is_away(self, silent: Url, question: IsNetworkAway) -> bool:
        """Whether the network, rather than the silent host, is at fault.

        Raises:
            OSError: the network has been down for too long.
        """
        with self._lock:
            seconds = time.monotonic() - self._answered_at
            others = [address for host, address in self._witnesses.items() if host != silent.netloc]
        if seconds < FRESH_SECONDS and others:
            return False
        if question.needs_names and not self._settings.limits.proxy:
            others = [
                address for address in others if any(map(str.isalpha, address.host.rpartition(".")[2]))
            ] or others
        if self._settings.limits.proxy or others:
            is_away = not any(accepts_connections(address, self._settings.limits) for address in others or [silent])
        else:
            is_away = question.is_local
        limit = NETWORK_PATIENCE * self._settings.patience
        if is_away and seconds > limit:
            raise OSError(
                f"No host has answered for {seconds:.0f} s, not even those that did before: the network of this "
                "machine, its resolver or the proxy is down. Run the same command again to resume."
            )
        with self._lock:
            if is_away and not self._is_away:
                logger.warning("No host answers: this machine's network is down. Waiting for it, up to %.0f s.", limit)
            self._is_away |= is_away
        return is_away
