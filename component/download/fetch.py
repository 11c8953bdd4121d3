"""One URL → its body in an open file, within limits of time, size, hops and reachable addresses."""

import contextlib
import datetime
import email.utils
import errno
import http.client
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote, urljoin

import certifi
from urllib3 import BaseHTTPResponse, exceptions
from urllib3.util import Url, make_headers, parse_url

from component.download.address import read_url, refuse_private_by_name
from component.download.connection import BLOCK_BYTES, SILENCE_SECONDS, TooManyBytesError, allowance, pool_manager
from component.download.outcome import FetchError

MAX_REDIRECTS = 5
HEADER_BYTES = 128 * 1024  # of one answer; and what may come in a body beside its content, as the sizes of chunks
OPT_OUT_DIRECTIVES = {"noai", "noimageai", "noindex", "noimageindex"}  # the four that img2dataset respects
# Failures of this machine, which no other URL would be spared: the run stops instead of blaming the servers.
OUR_ERRNO = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


@dataclass(frozen=True)
class FetchLimits:
    """What a request may cost, whom it may talk to and what it says.

    Attributes:
        timeout: seconds of network time for one image, all its redirects and retries together.
        max_bytes: largest body, counted after decompression.
        user_agent: sent with every request.
        referer: sent as Referer where a host shows its images to its own pages only. `{origin}` stands for
            `scheme://host[:port]` of the URL that is asked for, `{url}` for all of it.
        proxy: `http://host:port` (or https) through which everything goes. The proxy then resolves the names, so
            only what is written out in a URL can be checked here.
        allow_private_hosts: also talk to loopback, link-local and private addresses.
        no_verify_tls: hosts, each with those below it, whose certificates are not looked at.
    """

    timeout: float = 30.0
    max_bytes: int = 20 * 2**20
    user_agent: str = "CLIP-Chinese/1.0 (image downloader for research)"
    referer: str | None = None
    proxy: str | None = None
    allow_private_hosts: bool = False
    no_verify_tls: tuple[str, ...] = ()

    def __post_init__(self):
        try:
            proxy = parse_url(self.proxy or "http://none")
        except exceptions.LocationParseError:
            proxy = Url()
        if not (proxy.host and proxy.scheme in ("http", "https")):
            raise ValueError(f"proxy {self.proxy!r} is not supported. Give http://host:port; most proxies offer it.")
        referer = self._filled_referer("", "")
        for name, value in (("user_agent", self.user_agent), ("referer", referer)):
            if not re.fullmatch(r"[\x20-\x7e\x80-\xff]*", value):
                raise ValueError(f"{name} {value!r} cannot be sent: a header holds Latin letters in one line.")
        if "{" in referer:
            raise ValueError(f"referer {self.referer!r}: only {{origin}} and {{url}} are filled in.")
        for host in self.no_verify_tls:
            if not host.strip(".") or set("/:*@") & set(host):
                raise ValueError(f"no_verify_tls {host!r}: give the name of a host, without scheme and port.")

    def _filled_referer(self, origin: str, url: str) -> str:
        return (self.referer or "").replace("{origin}", origin).replace("{url}", url)

    def headers(self, address: Url) -> dict[str, str]:
        """What a request for `address` says of us."""
        # identity: images do not compress, and Content-Length then tells the true size. A body that comes compressed
        # all the same is unpacked.
        headers = {"User-Agent": self.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        if self.referer:
            origin = f"{address.scheme}://{address.netloc}"
            headers["Referer"] = self._filled_referer(origin, address._replace(auth=None).url)
        if address.auth:
            headers.update(make_headers(basic_auth=unquote(address.auth)))
        return headers

    def verifies(self, host: str) -> bool:
        """Whether the certificate of `host` is looked at."""
        name = f".{host.strip('[].')}"
        return not name.endswith(tuple(f".{listed.lower().strip('[].')}" for listed in self.no_verify_tls))


class Fetcher:
    """Fetches URLs over pooled connections; one object serves all threads.

    Nothing is read from the environment (proxies, .netrc) and no cookies are kept: requests carry nothing from one
    host to another, and the address check is not bypassed by a forgotten http_proxy variable.
    """

    def __init__(self, limits: FetchLimits, connections_per_host: int):
        self.limits = limits
        # Idle connections are files too: 32 hosts of 16 stay below the 1,024 that most systems allow.
        options = dict(proxy=limits.proxy, num_pools=32, maxsize=connections_per_host)
        self._pools = pool_manager(**options, ssl_context=ssl.create_default_context(cafile=certifi.where()))
        if limits.no_verify_tls:
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            self._trusting_pools = pool_manager(**options, ssl_context=trusting, assert_hostname=False)

    def fetch(self, url: str, sink: BinaryIO, seconds: float) -> None:
        """Write the body of `url` to `sink`, following redirects.

        Args:
            seconds: everything must be over by then, however the bytes dribble in. (Resolving a name is in the hands
                of the system, which gives up by its own clock, usually within 5 to 20 s.)

        Raises:
            FetchError: for everything the network or the server did wrong.
            OSError: `sink` could not be written, or this machine cannot open a connection.
        """
        allowance.deadline = time.monotonic() + seconds
        allowance.allow_private_hosts = self.limits.allow_private_hosts
        address = read_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            if self.limits.proxy and not self.limits.allow_private_hosts:
                refuse_private_by_name(address.host)
            with self._answer(address) as response:
                # False: not a redirect; None: one that does not say where to
                if not response.get_redirect_location():
                    _check_answer(response, self.limits.max_bytes)
                    self._copy_body(response, sink)
                    return
                address = _next_address(address, response)
        raise FetchError("redirects", f"more than {MAX_REDIRECTS}", response.status)

    @contextlib.contextmanager
    def _answer(self, address: Url) -> Iterator[BaseHTTPResponse]:
        """The answer with its body unread. What is left unread at the end is not read: the connection is closed."""
        patience = min(SILENCE_SECONDS, max(allowance.deadline - time.monotonic(), 0.001))
        pools = self._pools if self.limits.verifies(address.host) else self._trusting_pools
        allowance.bytes_left = HEADER_BYTES
        with _faults_named(f"{address.netloc} is silent for {patience:.0f} s"):
            response = pools.urlopen(
                "GET",
                address._replace(auth=None).url,
                headers=self.limits.headers(address),
                timeout=patience,
                redirect=False,
                retries=False,
                preload_content=False,
            )
            if response.length_remaining == 0 and not response.chunked:
                response.read(1)  # tells the pool that the connection is free
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _copy_body(self, response: BaseHTTPResponse, sink: BinaryIO) -> None:
        size = 0
        allowance.bytes_left = self.limits.max_bytes + HEADER_BYTES
        while True:
            with _faults_named(f"body unfinished after {size} bytes", response.status):
                block = response.read(BLOCK_BYTES, decode_content=True)
            if not block:
                return
            size += len(block)
            if size > self.limits.max_bytes:
                raise FetchError("too_large", f"more than {self.limits.max_bytes} bytes", response.status)
            sink.write(block)


@contextlib.contextmanager
def _faults_named(when_late: str, code: int | None = None) -> Iterator[None]:
    """Turn whatever urllib3 and http.client raise into a FetchError; `code` is the status, None before there is one.

    An answer that breaks the rules of HTTP raises nearly anything there, ValueError included.
    """
    try:
        yield
    except TooManyBytesError:
        if code is None:
            raise FetchError("bad_answer", f"more than {HEADER_BYTES} bytes of headers") from None
        raise FetchError("too_large", "more bytes than max_bytes allows", code) from None
    except (exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        root = _root(error)
        if isinstance(root, OSError) and root.errno in OUR_ERRNO:
            raise OSError(root.errno, f"{root.strerror}; fewer --num_threads need less") from None
        reason = _reason(error, root)
        late = reason == "timeout" or (reason == "connection" and isinstance(root, TimeoutError))
        words = when_late if late else getattr(root, "strerror", None) or str(root)
        # "ICY 200 OK" alone would be the server's own words
        raise FetchError(reason, f"{type(root).__name__} {root}" if reason == "bad_answer" else words, code) from None


def _reason(error: Exception, root: BaseException) -> str:
    if isinstance(error, exceptions.SSLError) or isinstance(root, ssl.SSLError):
        return "tls"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ProxyError)):
        return "connection"
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return "timeout"
    if isinstance(error, exceptions.DecodeError):
        return "bad_encoding"
    if isinstance(error, (exceptions.LocationValueError, http.client.InvalidURL, UnicodeError)):
        return "bad_url"
    if isinstance(root, http.client.IncompleteRead):
        return "truncated"
    # http.client's RemoteDisconnected is an OSError
    return "connection" if isinstance(root, OSError) else "bad_answer"


def _root(error: BaseException) -> BaseException:
    """The innermost cause; urllib3 wraps it in layers of object addresses."""
    while True:
        inner = (
            getattr(error, "reason", None)
            or error.__cause__
            or next((part for part in error.args if isinstance(part, BaseException)), None)
        )
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _next_address(address: Url, response: BaseHTTPResponse) -> Url:
    """Where a redirect leads. http.client hands over bytes as Latin-1: they are UTF-8, or escaped as they came."""
    raw = response.headers.getlist("Location")[0].encode("latin-1")
    try:
        location = raw.decode()
    except UnicodeDecodeError:  # GBK, for one; the server knows its own bytes again
        location = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)
    try:
        return read_url(urljoin(address.url, location))
    except (FetchError, ValueError) as error:
        detail = error.detail if isinstance(error, FetchError) else str(error)
        raise FetchError("bad_url", f"redirected to {location[:60]!r}: {detail}", response.status) from None


def _check_answer(response: BaseHTTPResponse, max_bytes: int) -> None:
    """Refuse what need not be read: errors, bodies announced too large, owners who opted out."""
    code = response.status
    if code != 200:
        wait = _retry_after(response.headers.get("Retry-After", ""))
        raise FetchError(f"http_{code}", response.reason or "", code, wait)
    if (response.length_remaining or 0) > max_bytes:
        raise FetchError("too_large", f"{response.length_remaining} bytes announced, {max_bytes} allowed", code)
    for directive in response.headers.get("X-Robots-Tag", "").lower().split(","):
        if directive.strip() in OPT_OUT_DIRECTIVES:
            raise FetchError("opt_out", f"X-Robots-Tag: {directive.strip()}", code)


def _retry_after(header: str) -> float | None:
    """Seconds from now, for both forms that RFC 9110 allows: a number of seconds or a date; None for nonsense."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return max((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
