"""What becomes of a row."""

from dataclasses import dataclass


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
