"""One URL → its body in an open file, within limits of time, size, hops and reachable addresses."""

import datetime
import email.utils
import http.client
import http.cookiejar
import io
import ipaddress
import socket
import threading
import time
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_REDIRECTS = 5
SILENCE_SECONDS = 10.0  # longest wait for a connection, and for the next bytes; never longer than the deadline
BLOCK_BYTES = 64 * 1024
OPT_OUT_DIRECTIVES = {"noai", "noimageai", "noindex", "noimageindex"}  # the four that img2dataset respects
RETRIED_REASONS = {"dns", "connection", "truncated", "http_429"}  # and every http_5xx


@dataclass(frozen=True)
class FetchLimits:
    """What a request may cost and whom it may talk to.

    Attributes:
        timeout: seconds of network time for one image, all its redirects and retries together.
        max_bytes: largest body, counted after decompression.
        user_agent: sent with every request.
        proxy: `http://host:port` (or https) through which everything goes. The proxy then resolves the names, so
            only addresses written out in a URL can be checked here.
        allow_private_hosts: also talk to loopback, link-local and private addresses.
    """

    timeout: float = 30.0
    max_bytes: int = 20 * 2**20
    user_agent: str = "CLIP-Chinese/1.0 (image downloader for research)"
    proxy: str | None = None
    allow_private_hosts: bool = False

    def __post_init__(self):
        if self.proxy and urlsplit(self.proxy).scheme not in ("http", "https"):
            raise ValueError(f"proxy {self.proxy!r} is not supported. Give http://host:port; most proxies offer it.")


class FetchError(Exception):
    """A body that was not fetched.

    Attributes:
        reason: one word to count by, such as `timeout` or `http_404`.
        detail: what a person wants to read beside it; may be empty.
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


def host_of(url: str) -> str:
    """`host:port` that a URL leads to, in lower case, the port only when written.

    Raises:
        FetchError: `bad_url`, for anything but a well-formed http or https URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from None
    if parts.scheme not in ("http", "https") or not host:
        raise FetchError("bad_url", "only http:// and https:// URLs are fetched")
    return f"{host}:{port}" if port else host


class Fetcher:
    """Fetches URLs over pooled connections; one object serves all threads.

    The session reads nothing from the environment (proxies, .netrc) and keeps no cookies: requests carry nothing
    from one host to another, and the address check is not bypassed by a forgotten http_proxy variable.
    """

    def __init__(self, limits: FetchLimits, connections_per_host: int):
        self.limits = limits
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        # identity: pictures do not compress, and Content-Length then tells the true size. A body that comes
        # compressed all the same is unpacked.
        self._session.headers.update({"User-Agent": limits.user_agent, "Accept-Encoding": "identity"})
        if limits.proxy:
            self._session.proxies = {"http": limits.proxy, "https": limits.proxy}
        adapter = _Adapter(pool_connections=64, pool_maxsize=connections_per_host)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def fetch(self, url: str, sink: BinaryIO, seconds: float) -> None:
        """Write the body of `url` to `sink`, following redirects.

        Args:
            seconds: everything must be over by then, however the bytes dribble in. (Resolving a name is in the hands
                of the system, which gives up by its own clock, usually within 5 to 20 s.)

        Raises:
            FetchError: for everything the network or the server did wrong.
            OSError: `sink` could not be written.
        """
        _request.deadline = time.monotonic() + seconds
        _request.allow_private_hosts = self.limits.allow_private_hosts
        for _ in range(MAX_REDIRECTS + 1):
            host = host_of(url)
            if self.limits.proxy and not self.limits.allow_private_hosts:
                _refuse_private_literal(urlsplit(url).hostname)
            with self._get(url, host) as response:
                target = self._session.get_redirect_target(response)
                if target is None:
                    _check_answer(response, self.limits.max_bytes)
                    self._copy_body(response, sink)
                    return
                url = urljoin(url, target)
        raise FetchError("redirects", f"more than {MAX_REDIRECTS}", response.status_code)

    def _get(self, url: str, host: str) -> requests.Response:
        patience = min(SILENCE_SECONDS, max(_request.deadline - time.monotonic(), 0.001))
        try:
            return self._session.get(url, stream=True, allow_redirects=False, timeout=patience)
        except requests.exceptions.SSLError as error:
            raise FetchError("tls", _root(error)) from None
        except requests.exceptions.ConnectTimeout:
            raise FetchError("connection", f"no connection to {host} within {patience:.0f} s") from None
        except (requests.exceptions.Timeout, TimeoutError):
            raise FetchError("timeout", "no answer") from None
        except requests.exceptions.ConnectionError as error:
            raise FetchError("connection", _root(error)) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise FetchError("bad_url", _root(error)) from None

    def _copy_body(self, response: requests.Response, sink: BinaryIO) -> None:
        size, code = 0, response.status_code
        while True:
            try:
                block = response.raw.read(BLOCK_BYTES, decode_content=True)
            except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
                raise FetchError("timeout", f"body unfinished after {size} bytes", code) from None
            except urllib3.exceptions.DecodeError as error:
                raise FetchError("bad_encoding", _root(error), code) from None
            except urllib3.exceptions.SSLError as error:
                raise FetchError("tls", _root(error), code) from None
            except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
                cut = "IncompleteRead" in str(error)
                raise FetchError("truncated" if cut else "connection", _root(error), code) from None
            if not block:
                return
            size += len(block)
            if size > self.limits.max_bytes:
                raise FetchError("too_large", f"more than {self.limits.max_bytes} bytes", code)
            sink.write(block)


def _check_answer(response: requests.Response, max_bytes: int) -> None:
    """Refuse what need not be read: errors, bodies announced too large, owners who opted out."""
    code = response.status_code
    if code != 200:
        wait = _retry_after(response.headers.get("Retry-After"))
        raise FetchError(f"http_{code}", response.reason or "", code, wait)
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise FetchError("too_large", f"{announced} bytes announced, {max_bytes} allowed", code)
    for directive in response.headers.get("X-Robots-Tag", "").lower().split(","):
        if directive.strip() in OPT_OUT_DIRECTIVES:
            raise FetchError("opt_out", f"X-Robots-Tag: {directive.strip()}", code)


def _retry_after(header: str | None) -> float | None:
    """Seconds from now, for both forms that RFC 9110 allows: a number of seconds or a date."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return max((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)


def _root(error: BaseException) -> str:
    """The innermost cause in one line; urllib3 and requests wrap it in layers of object addresses."""
    while True:
        inner = (
            getattr(error, "reason", None)
            or error.__cause__
            or next((part for part in error.args if isinstance(part, BaseException)), None)
        )
        if not isinstance(inner, BaseException):
            return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]
        error = inner


# --- the connection: which addresses it may reach, and when it must give up -------------------------------------

_request = threading.local()  # deadline and allow_private_hosts of the request that this thread is making


def _refuse_private(host: str, address: str) -> None:
    """Raise `private_host` unless the address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip  # ::ffff:127.0.0.1 is 127.0.0.1
    if not ip.is_global or ip.is_multicast:
        raise FetchError("private_host", f"{host} is {address}; --allow_private_hosts permits it")


def _refuse_private_literal(host: str) -> None:
    """The part of the check that needs no name resolution: 127.0.0.1, 127.1, 0x7f000001, [::1], localhost."""
    if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
        host = "127.0.0.1"
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_aton(host) if family == socket.AF_INET else socket.inet_pton(family, host)
        except (OSError, UnicodeError):
            continue
        _refuse_private(host, socket.inet_ntop(family, packed))


class _Reader(io.RawIOBase):
    """The receiving end of a socket that stops at the deadline.

    A socket's own timeout starts anew with every byte, so a server that sends one byte every nine seconds, in the
    header or in the body, would hold a thread for days.
    """

    def __init__(self, raw: socket.SocketIO, sock: socket.socket):
        self._raw, self._sock = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        left = _request.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        self._sock.settimeout(min(SILENCE_SECONDS, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock))


class _Guarded:
    """Resolves the name once and connects to an address that was checked.

    Checking first and letting the library resolve again would leave a gap for a name server that answers the second
    question differently (DNS rebinding).
    """

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        if self.proxy is not None:
            return super()._new_conn()
        name = self._dns_host
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise FetchError("dns", f"{name}: {getattr(error, 'strerror', error)}") from None
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        if not _request.allow_private_hosts:
            for address in addresses:
                _refuse_private(name, address)
        try:
            while True:
                self._dns_host = addresses.pop(0)
                try:
                    return super()._new_conn()
                except urllib3.exceptions.HTTPError:
                    if not addresses or time.monotonic() > _request.deadline:
                        raise
        finally:
            self._dns_host = name


class _GuardedHTTP(_Guarded, HTTPConnection):
    pass


class _GuardedHTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _GuardedHTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args, **kwargs):
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, proxy, **kwargs):
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
