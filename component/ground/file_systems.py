"""The file systems of fsspec, and their errors in words.

Each protocol is a file system of its own package (s3fs, ossfs, aiohttp for https), with the credentials and settings
that the package finds by itself.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from component.ground.optional import import_optional

STALL_SECONDS = 30  # without a byte, after which a web server counts as not answering; s3fs has its own limit


def is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def file_system(path: str) -> tuple[Any, str]:
    """fsspec's file system, which it keeps for each process, and the path in it."""
    protocol, options = path.partition("://")[0], {}
    fsspec = import_optional("fsspec", path, "remote")
    try:
        if is_web(path):
            aiohttp = import_optional("aiohttp", path, "remote")
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
            known = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            # trust_env: proxies and .netrc, as for the other programs on this machine.
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True, **known}
        return fsspec.core.url_to_fs(path, **options)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        if package is None:
            raise
        raise ModuleNotFoundError(f"{path} needs {package}: pip install {package}") from None
    except ValueError as error:
        raise ValueError(f"{path}: there is no file system {protocol}:// ({error}).") from None


@contextmanager
def errors_in_words(path: str) -> Iterator[None]:
    """Turn the errors of all file systems into OSError, of which `with_retries` knows those that will not go away."""
    try:
        yield
    except (ModuleNotFoundError, ValueError, MemoryError):
        raise
    except Exception as error:  # each file system has classes of its own
        status = _status(error)
        name = type(error).__name__
        if status in (401, 403) or (status is None and (isinstance(error, PermissionError) or "Credential" in name)):
            raise PermissionError(
                errno.EPERM, f"the store refuses access: check credentials and rights ({_first_line(error)})", path
            ) from None
        if status in (404, 410) or (isinstance(error, FileNotFoundError) and error.__cause__ is None):
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None
        is_final = status is not None and 400 <= status < 500 and status not in (408, 409, 412, 425, 429)
        number = errno.EINVAL if is_final else errno.EIO
        raise OSError(number, f"the store does not answer: {_first_line(error)}", path) from None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error. fsspec's web files call every failed look at a file a missing one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(error, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
