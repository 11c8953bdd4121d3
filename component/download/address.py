"""URLs: repaired, parsed once by the library that connects, and checked for private addresses."""

import ipaddress
import re
import socket
import string
import unicodedata

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from component.download.outcome import FetchError

# Invisible characters that copying leaves around a URL: white space, byte order marks, zero-width spaces.
INVISIBLE = string.whitespace + "".join(
    chr(code) for code in (*range(0x3001), 0xFEFF) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Zs")
)
HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the only range of IPv6 assigned so far
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Registered as public, but metadata services of clouds use them (Oracle, Azure). Alibaba's is in 100.64.0.0/10.
CLOUD_SERVICES = [ipaddress.ip_network(network) for network in ("192.0.0.0/24", "168.63.129.16/32")]
LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")  # names that are never public


def mend_url(url: str) -> str:
    """Repair a URL: strip invisible characters, replace `&amp;` by `&`, add a scheme to `//host/…`.

    The scheme is http: a host that wants https redirects there, and one without https could not be reached otherwise.

    >>> mend_url("//example.com/a?b=1&amp;c=2 ")
    'http://example.com/a?b=1&c=2'
    """
    url = url.strip(INVISIBLE).replace("&amp;", "&")
    return f"http:{url}" if url.startswith("//") else url


def read_url(url: str) -> Url:
    """Parse a URL that `mend_url` returned. Everything that is shown, compared or checked comes from this result.

    A host is a plain name or an address in its usual form: 127.1, 0x7f000001 and 127.0.0.1. become 127.0.0.1, and an
    IPv6 address loses its zone. A URL that another program could read differently is refused.

    >>> read_url("http://127.1:80/a?b#c")
    Url(scheme='http', auth=None, host='127.0.0.1', port=80, path='/a', query='b', fragment=None)

    Raises:
        FetchError: `bad_url`, for anything but a well-formed http or https URL.
    """
    if not re.match("https?://", url, re.IGNORECASE):
        hint = f"; https://{url[:60]}?" if re.match(r"[\w-]+(\.[\w-]+)+/", url) else ""
        raise FetchError("bad_url", f"only http:// and https:// URLs are fetched, not {url[:60]!r}{hint}")
    try:
        parsed = parse_url(url)
    except (LocationParseError, ValueError) as error:
        raise FetchError("bad_url", str(error)) from None
    return parsed._replace(host=_usual_form(parsed.host or ""), fragment=None)


def refuse_private(host: str, address: str) -> None:
    """Raise FetchError `private_host` unless the address belongs to the public internet."""
    if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
        where = address if host.strip("[]") == address else f"{host} is {address}"
        raise FetchError("private_host", f"{where}; --allow_private_hosts permits it")


def refuse_private_by_name(host: str) -> None:
    """Check what needs no name resolution: addresses, and names that are never public.

    Args:
        host: as `read_url` gives it.
    """
    try:
        address = str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        name = host.rstrip(".")
        if "." not in name or f".{name}".endswith(tuple(f".{local}" for local in LOCAL_NAMES)):
            raise FetchError("private_host", f"{host} is a local name; --allow_private_hosts permits it") from None
    else:
        refuse_private(host, address)


def _usual_form(host: str) -> str:
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1].partition('%')[0])}]"
        if NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):  # no public name ends in a number
            return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    except (OSError, ValueError):
        pass
    else:
        if HOST_NAME.fullmatch(host):
            return host
    raise FetchError("bad_url", f"{host!r} is not the name of a host")


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if ip.version == 6:
        # An address that contains an IPv4 address is checked as that one: a gateway forwards the packets there.
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) % 2**32) if ip in NAT64 else None)
        if inner is None:
            return ip in GLOBAL_UNICAST and ip.is_global  # is_global excludes Teredo, 2001::/32
        ip = inner
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in CLOUD_SERVICES)
