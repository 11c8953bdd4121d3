"""Messages between the main process and the worker processes of a download."""

from dataclasses import dataclass, field
from typing import NamedTuple

from urllib3.util import Url

from component.download.limits import FetchLimits
from component.download.outcome import Outcome


@dataclass(frozen=True)
class DownloadSettings:
    """How to download.

    Attributes:
        num_threads: number of images in progress at the same time.
        per_host: maximum number of these from one host.
        retries: further attempts after 5xx and broken connections.
        patience: seconds for which a host may leave every request unanswered or refuse it (429, 503) before its rows
            fail; this machine's own network has ten times as long.
        resize: shorter side in pixels; None keeps the bytes as they came.
        limits: what a single request may cost.
    """

    num_threads: int = 64
    per_host: int = 16
    retries: int = 2
    patience: float = 60.0
    resize: int | None = None
    limits: FetchLimits = field(default_factory=FetchLimits)

    @property
    def longest_pause(self) -> float:
        """Seconds between two requests to a host in trouble: at least six fit into the patience."""
        return min(10.0, self.patience / 6)


@dataclass
class Job:
    """A file to fetch, or, until it has an `address`, to verify.

    Attributes:
        number: number of the row, which no other job of the run has.
        filename, url: cells of the row, as written.
        mended_url: as `mend_url` gives it.
        path: file to write.
        failed_before: an earlier run gave up on the row.
        address: the parsed URL.
        attempts: number of failed attempts that count.
        seconds: time spent on attempts.
        refusals: number of answers 429 and 503; the first came at the monotonic time `refused_since`.
        kills: number of processes that died while decoding this image.
    """

    number: int
    filename: str
    url: str
    mended_url: str
    path: str = ""
    failed_before: bool = False
    address: Url | None = None
    attempts: int = 0
    seconds: float = 0.0
    refusals: int = 0
    refused_since: float = 0.0
    kills: int = 0

    @property
    def host(self) -> str:
        """`host:port` to ask; empty for a file to verify, which asks no host."""
        return self.address.netloc if self.address else ""

    def outcome(self, status: str, reason: str = "") -> Outcome:
        url = self.url.strip()
        return Outcome(self.filename, url, status, reason=reason, host=self.host, is_mended=self.mended_url != url)


class IsNetworkAway(NamedTuple):
    """The question whether the job's host is silent because this machine's own network is down. The answer is a bool.

    `is_local`: as in FetchError; `needs_names`: the host's name could not be resolved.
    """

    number: int
    is_local: bool
    needs_names: bool


class Answer(NamedTuple):
    """The answer to an IsNetworkAway."""

    number: int
    is_away: bool


class Ended(NamedTuple):
    """The end of a job: an outcome that is in the report, an error that ends the run, or the job itself, to be queued
    for its host.
    """

    number: int
    result: Outcome | Exception | Job
