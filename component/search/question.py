"""The body of a question to the server: read within limits, parsed into a query."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from component.search.guard import Refused
from component.search.query import Filter

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_BODIES = 4  # number of bodies above SMALL_BYTES in memory at once
SMALL_BYTES = 64 * 2**10
CHUNK_SECONDS, BODY_SECONDS, QUEUE_SECONDS = 5, 60, 10
MAX_TEXT, MAX_TEXTS, MAX_LABELS, MAX_ROWS = 500, 8, 50, 8
MAX_TOP_K = 2000


@dataclass(frozen=True)
class Question:
    """A line of JSON, and the content of an image file, or b""."""

    options: dict[str, Any]
    image: bytes

    def texts(self, key: str, most: int = MAX_TEXTS) -> list[str]:
        texts = self.options.get(key) or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{key}: expected a list of texts")
        texts = [text.strip() for text in texts if text.strip()]
        if len(texts) > most or any(len(text) > MAX_TEXT for text in texts):
            raise ValueError(f"{key}: expected at most {most} texts of {MAX_TEXT} characters")
        for text in texts:
            _require_unicode(key, text)
        return texts

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float | None:
        value = self.options.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ValueError(f"{key}: expected a number from {least:g} to {most:g}")
        return value

    def rows(self, key: str) -> list[int]:
        rows = self.options.get(key) or []
        if not isinstance(rows, list) or len(rows) > MAX_ROWS:
            raise ValueError(f"{key}: expected a list of at most {MAX_ROWS} ids")
        if not all(type(row) is int and 0 <= row < 2**62 for row in rows):
            raise ValueError(f"{key}: expected ids, which are whole numbers")
        return rows

    def where(self) -> Filter:
        folder = self.options.get("folder")
        if not isinstance(folder, (str, type(None))) or "\0" in (folder or ""):
            raise ValueError("folder: expected a text")
        return Filter(
            folder=folder or None,
            since=self.number("since", -1e12, 1e12),
            until=self.number("until", -1e12, 1e12),
            threshold=self.number("threshold", -10, 10),
            fold=self.number("fold", 0, 1),
        )


def _require_unicode(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key}: half of a surrogate pair is not a character") from None


class Bodies:
    """Reads the bodies of requests, no more than MAX_BODIES large ones at once."""

    def __init__(self):
        self._free = asyncio.Semaphore(MAX_BODIES)

    @asynccontextmanager
    async def read(self, request) -> AsyncIterator[Question]:
        """The question in a request; it counts as in memory until the block ends.

        Raises:
            Refused: the body is too large, comes too slowly or was aborted, or too many others are in memory.
            ValueError: its first line is not a JSON object.
        """
        from starlette.requests import ClientDisconnect

        with ExitStack() as held:
            try:
                yield _parse(await self._read(request, held))
            except ClientDisconnect:
                raise Refused(400, "aborted", "the upload was aborted") from None

    async def _read(self, request, held: ExitStack) -> bytes:
        chunks, size, is_large, stream = [], 0, False, request.stream()
        end = asyncio.get_running_loop().time() + BODY_SECONDS
        while True:
            seconds = min(CHUNK_SECONDS, end - asyncio.get_running_loop().time())
            try:
                chunk = await asyncio.wait_for(anext(stream, None), seconds)
            except asyncio.TimeoutError:
                reason = f"nothing came for {CHUNK_SECONDS} seconds, or not everything within {BODY_SECONDS}"
                raise Refused(408, "slow", reason) from None
            if chunk is None:
                return b"".join(chunks)
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_UPLOAD_BYTES:
                raise Refused(413, "too_large", f"the image has more than {MAX_UPLOAD_BYTES >> 20} MB")
            if size > SMALL_BYTES and not is_large:
                is_large = True
                try:
                    await asyncio.wait_for(self._free.acquire(), QUEUE_SECONDS)
                except asyncio.TimeoutError:
                    raise Refused(503, "busy", f"{MAX_BODIES} other images are being read; try again") from None
                held.callback(self._free.release)


def _parse(body: bytes) -> Question:
    line, _, image = body.partition(b"\n")
    try:
        options = json.loads(line)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise ValueError("the first line of a question is a JSON object")
    return Question(options, image)
