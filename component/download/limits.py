"""Limits, permitted hosts and headers of a request."""

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url


@dataclass(frozen=True)
class FetchLimits:
    """Limits, permitted hosts and headers of a request.

    Attributes:
        timeout: seconds of network time for one image, all its redirects and retries together.
        max_bytes: largest body, counted after decompression.
        user_agent: sent with every request.
        referer: sent as Referer, for hosts that show their images to their own pages only. `{origin}` stands for
            `scheme://host[:port]` of the requested URL, `{url}` for the whole URL.
        proxy: `http://host:port` (or https) that all requests go through. The proxy then resolves the names, so
            only addresses written out in a URL can be checked here.
        allow_private_hosts: also talk to loopback, link-local and private addresses.
        no_verify_tls: hosts whose certificates are not verified; each name includes the hosts below it.

    Raises:
        ValueError: a value is invalid.
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
        except LocationParseError:
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
        """The headers of a request for `address`."""
        # identity: images do not compress, and Content-Length then tells the true size. A body that arrives
        # compressed anyway is decompressed.
        headers = {"User-Agent": self.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        if self.referer:
            origin = f"{address.scheme}://{address.netloc}"
            headers["Referer"] = self._filled_referer(origin, address._replace(auth=None).url)
        if address.auth:
            headers["Authorization"] = basic_auth(address.auth)
        return headers

    def verifies(self, host: str) -> bool:
        """Whether the certificate of `host` is verified."""
        name = f".{host.strip('[].')}"
        return not name.endswith(tuple(f".{listed.lower().strip('[].')}" for listed in self.no_verify_tls))


def basic_auth(user_info: str) -> str:
    """The value of an Authorization header for the credentials in a URL (RFC 7617, in UTF-8).

    >>> basic_auth("me:p%40ss")
    'Basic bWU6cEBzcw=='
    """
    user, _, password = map(unquote, user_info.partition(":"))
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
