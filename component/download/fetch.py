"""One URL → its body in an open file, within limits of time, size, redirects and reachable addresses."""

import contextlib
import ssl
import time
from collections.abc import Iterator
from http.cookiejar import CookieJar
from typing import BinaryIO
from urllib.parse import urljoin
from urllib.request import Request

import certifi
from urllib3 import BaseHTTPResponse, HTTPResponse, PoolManager
from urllib3.exceptions import InvalidHeader, ProtocolError
from urllib3.util import Retry, Url

from component.download.address import read_url, refuse_private_by_name
from component.download.connection import (
    BLOCK_BYTES,
    SILENCE_SECONDS,
    StaleConnectionError,
    allowance,
    pool_manager,
)
from component.download.faults import faults_named, root_of
from component.download.limits import FetchLimits
from component.download.outcome import FetchError

MAX_REDIRECTS = 5
HEADER_BYTES = 128 * 1024  # limit per answer, and for everything in addition to a body's content, such as chunk sizes
OPT_OUT_DIRECTIVES = {"noai", "noimageai", "noindex", "noimageindex"}  # the four that img2dataset respects
# Encodings that urllib3 decodes only with another package.
PACKAGES = {"br": "brotli", "zstd": "backports.zstd"}


class Fetcher:
    """Fetches URLs over pooled connections; one object serves all threads.

    Nothing is read from the environment (proxies, .netrc), and cookies live as long as the redirects of one request:
    requests carry nothing from one host to another, and a forgotten http_proxy does not bypass the address check.
    """

    def __init__(self, limits: FetchLimits, connections_per_host: int):
        self.limits = limits
        # Idle connections count as open files: 32 hosts with 16 each stay below the usual limit of 1,024.
        options = dict(proxy=limits.proxy, num_pools=32, maxsize=connections_per_host)
        self._pools = pool_manager(**options, ssl_context=ssl.create_default_context(cafile=certifi.where()))
        if limits.no_verify_tls:
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            self._trusting_pools = pool_manager(**options, ssl_context=trusting, assert_hostname=False)

    def fetch(self, address: Url, sink: BinaryIO, seconds: float) -> None:
        """Write the body of a URL to `sink`, following redirects.

        Args:
            address: as `read_url` gives it.
            seconds: limit for everything, however slowly the bytes arrive. (Name resolution has the system's own
                limit, usually 5 to 20 s.)

        Raises:
            FetchError: for every fault of the network or the server.
            OSError: `sink` could not be written, or this machine cannot open a connection.
        """
        allowance.deadline = time.monotonic() + seconds
        allowance.allow_private_hosts = self.limits.allow_private_hosts
        cookies = CookieJar()
        try:
            for _ in range(MAX_REDIRECTS + 1):
                if self.limits.proxy and not self.limits.allow_private_hosts:
                    refuse_private_by_name(address.host)
                with self._answer(address, cookies) as response:
                    # False: not a redirect; None: a redirect without a target
                    if not response.get_redirect_location():
                        _check_answer(response, self.limits.max_bytes)
                        self._copy_body(response, sink)
                        return
                    cookies.extract_cookies(response, Request(address._replace(auth=None).url))
                    address = _next_address(address, response)
            raise FetchError("redirects", f"more than {MAX_REDIRECTS}", response.status)
        except FetchError as error:
            error.host = address.netloc
            raise

    @contextlib.contextmanager
    def _answer(self, address: Url, cookies: CookieJar) -> Iterator[BaseHTTPResponse]:
        """The answer with its body unread. If the body is never read, its connection is closed."""
        patience = min(SILENCE_SECONDS, max(allowance.deadline - time.monotonic(), 0.001))
        pools = self._pools if self.limits.verifies(address.host) else self._trusting_pools
        url, headers = address._replace(auth=None).url, self.limits.headers(address)
        if len(cookies):
            cookies.add_cookie_header(request := Request(url))
            headers |= request.unredirected_hdrs
        with faults_named(f"{address.netloc} is silent for {patience:.0f} s", max_bytes=HEADER_BYTES):
            response = _send(pools, url, headers=headers, timeout=patience)
            if response.length_remaining == 0 and not response.chunked:
                response.read(1)  # returns the connection to the pool
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _copy_body(self, response: BaseHTTPResponse, sink: BinaryIO) -> None:
        size, max_bytes = 0, self.limits.max_bytes
        allowance.bytes_left = max_bytes + HEADER_BYTES
        while True:
            with faults_named(f"body unfinished after {size} bytes", response.status, max_bytes):
                block = response.read(BLOCK_BYTES, decode_content=True)
            if not block:
                return
            size += len(block)
            if size > max_bytes:
                raise FetchError("too_large", f"more than {max_bytes} bytes", response.status)
            sink.write(block)


def _send(pools: PoolManager, url: str, **options) -> BaseHTTPResponse:
    """Send a request, and send it again if the server has closed a kept-alive connection (RFC 9112, section 9.3.1).

    Each such failure removes a connection from the pool, so eventually the request is sent on a new one.
    """
    while True:
        allowance.bytes_left = HEADER_BYTES
        try:
            return pools.urlopen("GET", url, redirect=False, retries=False, preload_content=False, **options)
        except ProtocolError as error:
            if not isinstance(root_of(error), StaleConnectionError):
                raise


def _next_address(address: Url, response: BaseHTTPResponse) -> Url:
    """Target of a redirect. http.client decodes the bytes as Latin-1: decode them as UTF-8, or else escape them."""
    raw = response.headers.getlist("Location")[0].encode("latin-1")
    try:
        location = raw.decode()
    except UnicodeDecodeError:  # such as GBK; the server recognises its own bytes
        location = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)
    try:
        return read_url(urljoin(address.url, location))
    except (FetchError, ValueError) as error:
        detail = error.detail if isinstance(error, FetchError) else str(error)
        raise FetchError("bad_url", f"redirected to {location[:60]!r}: {detail}", response.status) from None


def _check_answer(response: BaseHTTPResponse, max_bytes: int) -> None:
    """Refuse answers without reading them: errors, bodies announced as too large, opt-outs, unknown encodings."""
    code = response.status
    if code not in (200, 203):  # 203: a proxy has modified the answer
        raise FetchError(f"http_{code}", response.reason or "", code, _retry_after(response))
    if (response.length_remaining or 0) > max_bytes:
        raise FetchError("too_large", f"{response.length_remaining} bytes announced, {max_bytes} allowed", code)
    for directive in response.headers.get("X-Robots-Tag", "").lower().split(","):
        if directive.strip() in OPT_OUT_DIRECTIVES:
            raise FetchError("opt_out", f"X-Robots-Tag: {directive.strip()}", code)
    for encoding in response.headers.get("Content-Encoding", "").lower().split(","):
        if (package := PACKAGES.get(encoding.strip())) and encoding.strip() not in HTTPResponse.CONTENT_DECODERS:
            detail = f"{encoding.strip()}, though none was requested; `pip install {package}` decodes it"
            raise FetchError("bad_encoding", detail, code)


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """The seconds that the server asks to wait; None if it does not, or if that is neither a number nor a date."""
    try:
        return Retry().get_retry_after(response)
    except (InvalidHeader, ValueError, TypeError, IndexError, OverflowError):
        return None
