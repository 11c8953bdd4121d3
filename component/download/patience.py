"""Whether an image is asked for again after a failed attempt: patience with its URL, its host and our own network."""

import random
import time
from collections.abc import Callable

from component.download.host_queue import HostQueue
from component.download.job import DownloadSettings, Job
from component.download.outcome import FetchError

MAX_RETRY_AFTER = 60.0  # seconds; if a host asks for more, the row fails (see --retry_failed)
LEAST_PROBES = 2  # attempts after the first failure before a host is given up


class TryAgain(Exception):
    """The attempt failed but may succeed later; `delay` is in seconds."""

    def __init__(self, delay: float = 0.0):
        self.delay = delay


class Patience:
    """Decides for all jobs of a process.

    Args:
        hosts: the queue that the jobs come from; it pauses hosts in trouble.
        is_network_away: whether the host of a job is silent because this machine's own network is down.

    Attributes:
        given_up: host → reason for its rows.
    """

    def __init__(
        self, settings: DownloadSettings, hosts: HostQueue, is_network_away: Callable[[Job, FetchError], bool]
    ):
        self._settings, self._hosts, self._is_network_away = settings, hosts, is_network_away
        self.given_up: dict[str, str] = {}

    def ask_again(self, job: Job, error: FetchError, started: float) -> None:
        """Decide whether to try again; returns if the row has failed permanently.

        Raises:
            TryAgain: the host or the network is in trouble, which does not count as an attempt; or another attempt
                is allowed and may succeed.
        """
        if error.host and error.host != job.host:  # a redirect led there
            self._hosts.answered(job.host)
        elif error.is_silence:
            self._wait_for_host(job, error, started)
        elif error.is_refusal:
            self._wait_for_turn(job, error, started)
            return
        elif error.http_code:
            self._hosts.answered(job.host)
        if job.host in self.given_up:
            return
        if error.reason == "timeout" and self._is_network_away(job, error):
            job.seconds = 0.0
            raise TryAgain(self._settings.longest_pause)
        job.attempts += 1
        if error.may_pass and job.attempts <= self._settings.retries and job.seconds < self._settings.limits.timeout:
            raise TryAgain(2 ** (job.attempts - 1) * random.uniform(0.5, 1.5))

    def _wait_for_host(self, job: Job, error: FetchError, started: float) -> None:
        """Raise TryAgain unless the host is given up, or has answered other requests since."""
        is_of_this_row = not error.is_unreached and self._hosts.has_answered_since(job.host, started)
        if is_of_this_row or job.host in self.given_up:
            return
        trouble = self._hosts.trouble(job.host, started, is_silence=True)
        if trouble.seconds < self._settings.patience or trouble.pauses <= LEAST_PROBES:
            if error.reason != "timeout":
                job.seconds -= min(job.seconds, time.monotonic() - started)  # time of the host, not of this row
                raise TryAgain
            if not job.attempts and job.seconds < self._settings.limits.timeout:
                job.attempts = 1  # a URL that hangs holds a thread for 10 s each time
                raise TryAgain
        elif self._is_network_away(job, error):
            self._hosts.forgive(job.host)
            job.seconds = 0.0
            raise TryAgain
        else:
            self._give_up(job.host, f"host_down: no answer for {trouble.seconds:.0f} s ({error.reason})")

    def _wait_for_turn(self, job: Job, error: FetchError, started: float) -> None:
        """Raise TryAgain unless the host, or this row, has been refused for too long."""
        pause = error.retry_after or 0.0
        if pause > MAX_RETRY_AFTER or job.host in self.given_up:
            return
        trouble = self._hosts.trouble(job.host, started, is_silence=False, pause=pause)
        if trouble.seconds >= self._settings.patience and trouble.pauses > LEAST_PROBES:
            self._give_up(job.host, f"host_down: nothing but {error.reason} for {trouble.seconds:.0f} s")
            return
        job.refused_since = job.refused_since or started
        job.refusals += 1
        if time.monotonic() - job.refused_since < self._settings.patience or job.refusals <= LEAST_PROBES:
            raise TryAgain(min(self._settings.longest_pause, 2.0 ** (job.refusals - 2)))

    def _give_up(self, host: str, reason: str) -> None:
        self.given_up[host] = reason
        self._hosts.release(host)
