"""What becomes of a row, and why a body could not be fetched."""

from dataclasses import dataclass

RETRIED_REASONS = {"dns", "connection", "truncated", "http_429"}  # and every http_5xx


class FetchError(Exception):
    """A body that was not fetched.

    Attributes:
        reason: one word to count by, such as `timeout` or `http_404`.
        detail: what a person wants to read next to it, perhaps in a server's words; may be empty.
        http_code: status of the last answer, None when there was none.
        retry_after: seconds the server asked us to wait, None when it did not ask.
        is_unreached: no connection was made, which says nothing of the URL but of its host or the network.
        is_local: the request seems not to have left this machine.
        host: `host:port` that was asked last, where a request was made.
    """

    is_unreached = is_local = False
    host = ""

    def __init__(self, reason: str, detail: str = "", http_code: int | None = None, retry_after: float | None = None):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.http_code, self.retry_after = reason, detail, http_code, retry_after

    @property
    def is_silence(self) -> bool:
        """The host did not answer at all."""
        return self.http_code is None and self.reason in ("dns", "connection", "timeout")

    @property
    def is_refusal(self) -> bool:
        """The host answered that it gets too many requests."""
        return self.http_code in (429, 503)

    @property
    def may_pass(self) -> bool:
        """The same request may succeed a moment later."""
        return self.reason in RETRIED_REASONS or self.reason.startswith("http_5")


@dataclass
class Outcome:
    """What became of one row.

    Attributes:
        filename, url: cells of the row, as written in the table.
        status: `ok`; `verified`, where a file from elsewhere is whole; `failed`; or `skipped` (needs nothing, and has
            no row in the report).
        reason: one word to count by, then perhaps a colon and details; empty when ok.
        bytes: size of the file.
        seconds: network and decoding time, without waiting for a turn.
        host: `host:port` of the URL, where the URL is well formed and was needed.
        is_mended: the URL was mended before use, see `address.mend_url`.
    """

    filename: str
    url: str
    status: str
    http_code: int | None = None
    reason: str = ""
    bytes: int = 0
    seconds: float = 0.0
    host: str = ""
    is_mended: bool = False
