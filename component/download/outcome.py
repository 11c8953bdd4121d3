"""What becomes of a row."""

from dataclasses import dataclass

RETRIED_REASONS = {"dns", "connection", "truncated", "http_429"}  # and every http_5xx


class FetchError(Exception):
    """A body that was not fetched.

    Attributes:
        reason: one word to count by, such as `timeout` or `http_404`.
        detail: what a person wants to read beside it, perhaps in a server's words; may be empty.
        http_code: status of the last answer, None when there was none.
        retry_after: seconds the server asked us to wait, None when it did not ask.
    """

    def __init__(self, reason: str, detail: str = "", http_code: int | None = None, retry_after: float | None = None):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.http_code, self.retry_after = reason, detail, http_code, retry_after

    @property
    def may_pass(self) -> bool:
        """True when the same request may well succeed a moment later."""
        return self.reason in RETRIED_REASONS or self.reason.startswith("http_5")


@dataclass
class Outcome:
    """What became of one row.

    Attributes:
        status: `ok`; `verified`, where a file from elsewhere was found whole; `failed`; or `skipped` (needs nothing;
            not in the report).
        reason: one word to count by, then perhaps a colon and details; empty when ok.
        bytes: size of the file. seconds: network and decoding time, without waiting for a turn.
    """

    filename: str
    url: str
    status: str
    http_code: int | None = None
    reason: str = ""
    bytes: int = 0
    seconds: float = 0.0
