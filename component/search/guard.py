"""Who may ask the server of a gallery, and what every response tells the browser."""

import ipaddress
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PUBLIC = ("/", "/page.css", "/page.js", "/icon.svg")  # cheap to serve, so other sites may link to it
_HEADERS = {
    # Only content from this server; blob: is for a pasted image before it is uploaded.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Refused(Exception):
    """A request that gets an error: its status, a code that the page has words for, and the reason in English."""

    def __init__(self, status: int, code: str, reason: str):
        super().__init__(reason)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names and addresses that the Host header may hold. Without this check, a page elsewhere could give its
            own name the address of this machine (DNS rebinding).
        any_address: whether the Host header may also be any IP address, which cannot be rebound.
        token: what the address of the page must carry as `?token=`; None: nothing.
    """

    hosts: Sequence[str] = LOOPBACK
    any_address: bool = False
    token: str | None = None


def new_token() -> str:
    return secrets.token_urlsafe(16)


def refusal(error: Refused):
    """The response to a request that is refused."""
    return json_response({"error": str(error), "code": error.code}, error.status)


def json_response(content, status: int = 200):
    """A JSON response in ASCII: file names may hold bytes that are not UTF-8, which become lone surrogates."""
    from starlette.responses import Response

    return Response(json.dumps(content), status, media_type="application/json")


class Guard:
    """ASGI middleware that refuses strangers and adds headers to every response, errors included."""

    def __init__(self, app, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.datastructures import MutableHeaders
        from starlette.requests import Request

        request = Request(scope)
        given = request.query_params.get("token")

        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if self.access.token and given and message["status"] < 400:
                    cookie = f"{self._cookie(request)}={self.access.token}"
                    headers.append("Set-Cookie", f"{cookie}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        app = self.app
        try:
            self._require_access(request, given)
        except Refused as error:
            app = refusal(error)
        await app(scope, receive, send_with_headers)

    def _require_access(self, request, given: str | None) -> None:
        host = request.headers.get("host", "")
        if not self._is_known(_name_of(host)):
            raise Refused(403, "host", "this server does not answer to that name")
        if request.url.path not in _PUBLIC:
            site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
            if site not in (None, "same-origin", "none") or (origin is not None and _netloc(origin) != host.lower()):
                raise Refused(403, "origin", "this server does not answer to pages of other sites")
        if self.access.token:
            given = given or request.cookies.get(self._cookie(request)) or ""
            if not secrets.compare_digest(given.encode(errors="replace"), self.access.token.encode()):
                raise Refused(403, "token", "open the address that the server printed when it started")

    def _is_known(self, name: str) -> bool:
        if name in (host.lower() for host in self.access.hosts):
            return True
        try:
            return self.access.any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    @staticmethod
    def _cookie(request) -> str:
        # Cookies ignore ports, so two servers on one host need different names.
        return f"gallery_token_{_port_of(request.headers.get('host', ''))}"


def _name_of(host: str) -> str:
    """The name or address in a Host header, in small letters, without port and brackets."""
    return (host.rpartition("]")[0].removeprefix("[") or host.partition(":")[0]).lower()


def _port_of(host: str) -> str:
    port = host.rpartition("]")[2].partition(":")[2]
    return port if port.isdecimal() and port.isascii() else "80"


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
