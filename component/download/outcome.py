"""The outcome of a row, and the error for a body that could not be fetched."""

from dataclasses import dataclass

RETRIED_REASONS = {"dns", "connection", "truncated", "http_429"}  # and every http_5xx


class FetchError(Exception):
    """A body could not be fetched.

    Attributes:
        reason: one word to count by, such as `timeout` or `http_404`.
        detail: more information for people, perhaps in the server's words; may be empty.
        http_code: status of the last answer; None if there was none.
        retry_after: seconds to wait, if the server asked for it; else None.
        is_unreached: no connection was made, which is a fault of the host or the network, not of the URL.
        is_local: the request probably did not leave this machine.
        host: `host:port` of the last request, if there was one.
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
        """The host answered that it receives too many requests."""
        return self.http_code in (429, 503)

    @property
    def may_pass(self) -> bool:
        """The same request may succeed later."""
        return self.reason in RETRIED_REASONS or self.reason.startswith("http_5")


@dataclass
class Outcome:
    """The outcome of one row.

    Attributes:
        filename, url: cells of the row, as written in the table.
        status: `ok`; `verified` (an existing file from elsewhere is good); `failed`; or `skipped` (nothing to do; not
            in the report).
        reason: one word to count by, then perhaps a colon and details; empty when ok.
        bytes: size of the file.
        seconds: network and decoding time, without waiting in the queue.
        host: `host:port` of the URL, if the URL is well formed and was needed.
        is_mended: the URL was repaired before use, see `address.mend_url`.
        digest: 8-byte digest of the content of the file, if it was written now.
        offset: of its row in the report, in bytes.
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
    digest: bytes = b""
    offset: int = 0
