"""Whatever urllib3, http.client and sockets raise → a FetchError with the reason, or an OSError of this machine."""

import contextlib
import errno
import http.client
import socket
import ssl
from collections.abc import Iterator

from urllib3 import exceptions

from component.download.outcome import FetchError

# Faults of this machine, which would affect every other URL too: the run stops instead of blaming the servers.
OUR_ERRNO = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
NOT_CONNECTED = exceptions.NewConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyError
NO_NETWORK_ERRNO = {errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}


class TooManyBytesError(Exception):
    """More bytes were received than the request allows."""


@contextlib.contextmanager
def faults_named(when_late: str, code: int | None = None, max_bytes: int = 0) -> Iterator[None]:
    """Turn every exception into a FetchError; an answer that violates HTTP can raise almost any.

    Args:
        when_late: detail of a timeout.
        code: status of the answer; None if there is none yet.
        max_bytes: to name in a TooManyBytesError.

    Raises:
        OSError: this machine cannot open a connection.
    """
    try:
        yield
    except TooManyBytesError:
        reason, what = ("bad_answer", " of headers") if code is None else ("too_large", "")
        raise FetchError(reason, f"more than {max_bytes} bytes{what}", code) from None
    except (exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        root = root_of(error)
        number = root.errno if isinstance(root, OSError) else None
        if number in OUR_ERRNO:
            raise OSError(number, f"{root.strerror}; fewer --num_threads need less") from None
        reason = _reason(error, root)
        is_late = reason == "timeout" or (reason == "connection" and isinstance(root, TimeoutError))
        detail = when_late if is_late else getattr(root, "strerror", None) or str(root)
        if reason == "bad_answer":  # "ICY 200 OK" alone would be the server's own words
            detail = f"{type(root).__name__} {root}"
        fault = FetchError(reason, detail, code)
        fault.is_unreached = isinstance(error, NOT_CONNECTED)
        fault.is_local = number in NO_NETWORK_ERRNO
        raise fault from None


def name_fault(name: str, error: OSError | UnicodeError) -> FetchError:
    """The FetchError of a host name that cannot be resolved."""
    fault = FetchError("dns", f"{name}: {getattr(error, 'strerror', error)}")
    fault.is_unreached = True
    fault.is_local = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
    return fault


def root_of(error: BaseException) -> BaseException:
    """The innermost cause; urllib3 wraps it in layers that name object addresses."""
    while True:
        inner = (
            getattr(error, "reason", None)
            or error.__cause__
            or next((argument for argument in error.args if isinstance(argument, BaseException)), None)
        )
        if not isinstance(inner, BaseException):
            return error
        error = inner


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
