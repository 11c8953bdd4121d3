"""Pooled connections that connect to checked addresses only, with a deadline and a limit on received bytes."""

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from component.download.address import refuse_private
from component.download.faults import TooManyBytesError, name_fault
from component.download.limits import FetchLimits, basic_auth
from component.download.outcome import FetchError

BLOCK_BYTES = 64 * 1024  # bytes per read: enough for most images with their headers
SILENCE_SECONDS = 10.0  # longest wait for a connection and for the next bytes, within the deadline
LEAST_BYTES = 1000  # minimum per SILENCE_SECONDS once an answer has begun; a slower one is given up
KNOCK_SECONDS = 5.0


class StaleConnectionError(ConnectionError):
    """The server closed a kept-alive connection before it answered: the request may be sent again."""


class _Allowance(threading.local):
    """Remaining limits of the current request of this thread.

    Attributes:
        deadline: monotonic time at which the request must be complete.
        bytes_left: number of bytes that may still be received, headers included.
        allow_private_hosts: refuse no address.
    """

    deadline = 0.0
    bytes_left = 0
    allow_private_hosts = False


allowance = _Allowance()


def pool_manager(proxy: str | None = None, **options) -> urllib3.PoolManager:
    """A urllib3.PoolManager, or ProxyManager, of such connections; `options` are its own."""
    if proxy:
        credentials = parse_url(proxy).auth
        headers = {"Proxy-Authorization": basic_auth(credentials)} if credentials else {}
        manager = urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
    else:
        manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


class _Reader(io.RawIOBase):
    """The receiving end of a socket, where every byte is counted against the allowance.

    It is done here because http.client and urllib3 read without a limit in many places: a server may send headers,
    `100 Continue`, chunks of one byte or a trailer without end. And a socket's own timeout restarts with every byte,
    so a server that sends one every nine seconds would hold a thread for days.
    """

    def __init__(self, raw: socket.SocketIO, sock: socket.socket):
        self._raw, self._sock = raw, sock
        self._due, self._missing = 0.0, 0  # time by which this number of further bytes must have arrived

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        left = allowance.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        if allowance.bytes_left <= 0:
            raise TooManyBytesError
        patience = min(SILENCE_SECONDS, left)
        if patience != self._sock.gettimeout():  # avoids a system call
            self._sock.settimeout(patience)
        count = self._raw.readinto(buffer)
        allowance.bytes_left -= count or 0
        self._missing -= count or 0
        if self._missing <= 0:
            self._due, self._missing = time.monotonic() + SILENCE_SECONDS, LEAST_BYTES
        elif time.monotonic() > self._due:  # checked after reading: we may be the slow side
            raise TimeoutError("too slow")
        return count

    def readall(self) -> bytes:
        # We read blocks. Only a chunk that announces -1 bytes makes http.client read everything at once.
        raise http.client.HTTPException("a chunk of negative length")

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock), BLOCK_BYTES)

    def begin(self) -> None:
        super().begin()
        while 102 <= self.status < 200:  # such as Early Hints; http.client itself skips 100 only
            self.headers = None
            super().begin()


class _Guarded:
    """Resolves the name once and connects to the checked address.

    Checking first and letting the library resolve again would leave a gap for a name server that gives another
    answer the second time (DNS rebinding).
    """

    response_class = _Response
    _is_kept = False  # the connection has already delivered an answer

    def _new_conn(self) -> socket.socket:
        if self.proxy is not None:
            return super()._new_conn()
        name = self._dns_host
        addresses = _checked_addresses(name, self.port, allowance.allow_private_hosts)
        try:
            while True:
                self._dns_host = addresses.pop(0)
                self.timeout = min(self.timeout, max(allowance.deadline - time.monotonic(), 0.001))
                try:
                    return super()._new_conn()
                except urllib3.exceptions.HTTPError:
                    if not addresses or time.monotonic() > allowance.deadline:
                        raise
        finally:
            self._dns_host = name

    def connect(self) -> None:
        self._is_kept = False
        super().connect()

    def request(self, *args, **options) -> None:
        with self._stale_named():
            super().request(*args, **options)

    def getresponse(self):
        with self._stale_named():
            response = super().getresponse()
        self._is_kept = True
        return response

    @contextlib.contextmanager
    def _stale_named(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, ssl.SSLEOFError):
            if not self._is_kept:
                raise
            raise StaleConnectionError from None


class _GuardedHTTP(_Guarded, HTTPConnection):
    pass


class _GuardedHTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _GuardedHTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


def _checked_addresses(name: str, port: int, allow_private_hosts: bool) -> list[str]:
    """The addresses of a host. Raises FetchError: `dns`, or `private_host` if one of them is private."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise name_fault(name, error) from None
    addresses = list(dict.fromkeys(entry[4][0] for entry in found))
    if not allow_private_hosts:
        for address in addresses:
            refuse_private(name, address)
    return addresses


def accepts_connections(address: Url, limits: FetchLimits) -> bool:
    """Whether the host of a URL, or the proxy if there is one, accepts a connection now. Nothing is sent."""
    target = parse_url(limits.proxy) if limits.proxy else address
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        is_free = limits.allow_private_hosts or bool(limits.proxy)
        for found in _checked_addresses(target.host.strip("[]"), port, is_free):
            with contextlib.suppress(OSError):
                socket.create_connection((found, port), KNOCK_SECONDS).close()
                return True
    except FetchError:
        pass
    return False
