"""The fetcher in this process: where it may connect, and what a server cannot do to it, over real sockets."""

import base64
import contextlib
import functools
import gzip
import io
import itertools
import os
import random
import sys
import tracemalloc
import zlib
from urllib.parse import quote

import pytest
from image_server import ImageServer, image_bytes
from urllib3 import HTTPResponse

from component.download import connection
from component.download.address import mend_url, read_url, refuse_private
from component.download.fetch import Fetcher
from component.download.limits import FetchLimits
from component.download.outcome import FetchError


@pytest.fixture(scope="module")
def server():
    with ImageServer() as server:
        yield server


@functools.cache
def fetcher(**limits) -> Fetcher:
    return Fetcher(FetchLimits(**{"allow_private_hosts": True} | limits), connections_per_host=2)


def fetch(url: str, seconds: float = 5, **limits) -> bytes:
    fetcher(**limits).fetch(read_url(mend_url(url)), body := io.BytesIO(), seconds)
    return body.getvalue()


def reason_for(url: str, **limits) -> str:
    with pytest.raises(FetchError) as caught:
        fetch(url, **limits)
    return str(caught.value)


def test_a_body_that_comes_a_byte_at_a_time_ends_long_before_the_deadline(server, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 1.0)
    with pytest.raises(FetchError, match=r"^timeout: body unfinished after \d{1,2} bytes$"):
        fetch(server.url("drip/x"), seconds=60)  # at five bytes a second


def test_a_slow_but_steady_body_is_waited_for(server, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 1.0)
    assert len(fetch(server.url("steady/x"), seconds=60)) == 6000  # in four seconds


# --- addresses ---------------------------------------------------------------------------------------------------

PRIVATE_ADDRESSES = """
    0.0.0.0 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 168.63.129.16 169.254.169.254 172.16.0.1 192.0.0.192
    192.168.1.1 198.18.0.1 224.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:0:127.0.0.1 ::ffff:a9fe:a9fe fe80::1 fec0::1 fd00:ec2::254
    64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1::808:808 2002:7f00:1:: 2002:a00:1::1 2001:0:808:808::1
    2001:db8::1 ff02::1
""".split()


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_private_addresses_are_refused(address):
    with pytest.raises(FetchError, match="private_host"):
        refuse_private("example.com", address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1", "::ffff:8.8.8.8"]
)
def test_public_addresses_pass_even_when_a_gateway_wraps_them(address):
    refuse_private("example.com", address)


HIDDEN_LOOPBACK = [
    r"http://127.0.0.1\@public.example",
    r"http://127.0.0.1\.public.example",
    "http://public.example@127.0.0.1",
    "http://a@b@127.0.0.1",
    "http://127.0.0.1#@public.example",
    "http://127.0.0.1?@public.example",
    "http://127.0.0.1.",
    "http://127.1",
    "http://2130706433",
    "http://0x7f.0.0.1",
    "http://0x7f000001",
    "http://0177.0.0.1",
    "http://017700000001",
    "http://127。0。0。1",
    "http://127｡0.0.1",
    "http://１２７.0.0.1",
    "http://%31%32%37.0.0.1",
    "http://127.0.0.1%2e",
    "http://127.0.0.1%00.public.example",
    "http://4294967297",
    "http://127.0.0.1.1",
    "http://127.0.0.1..",
    "http://[::1]",
    "http://[::1%25lo]",
    "http://[::1%lo]",
    "http://[fe80::1%25eth0]",
    "http://[::ffff:127.0.0.1]",
    "http://[::127.0.0.1]",
    "http://[64:ff9b::7f00:1]",
    "http://[2002:7f00:1::]",
    "http://localhost",
    "http://LOCALHOST.",
    "http://%6cocalhost",
    "http://ⓛocalhost",
    "http://x.localhost",
    "http://metadata.google.internal",
    "http://metadata",
]


@pytest.mark.parametrize("url", HIDDEN_LOOPBACK)
def test_a_proxy_is_never_asked_for_an_address_in_disguise(server, url):
    server.hits.clear()
    server.answers["elsewhere"] = [b"HTTP/1.1 302 F\r\nLocation: " + url.encode() + b"/jpg/x\r\n\r\n"]
    limits = dict(allow_private_hosts=False, proxy=f"http://{server.address}")
    for asked in (url + "/jpg/x", "http://public.example/raw/elsewhere"):
        assert reason_for(asked, **limits).startswith(("private_host", "bad_url"))
    assert server.hits == {"http://public.example/raw/elsewhere": 1}


@pytest.mark.parametrize("url", HIDDEN_LOOPBACK[:22])
def test_without_a_proxy_no_disguise_reaches_this_machine(url):
    assert reason_for(url + "/x", allow_private_hosts=False).startswith(("private_host", "bad_url"))


def test_a_url_is_requested_as_it_was_parsed():
    letters = r"http://\@:/?#[]%.a0x1２。 ;&" + "\u200b"
    picked = random.Random(0)
    for _ in range(3000):
        url = "http://" + "".join(picked.choices(letters, k=picked.randrange(1, 24)))
        try:
            address = read_url(mend_url(url))
        except FetchError as error:
            assert error.reason == "bad_url"
        else:
            again = read_url(address._replace(auth=None).url)
            assert (again.host, again.port, again.request_uri) == (address.host, address.port, address.request_uri)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on 127.0.0.2")
def test_a_redirect_to_a_private_host_is_refused_before_a_connection_is_made(monkeypatch, server):
    # 127.0.0.2 plays the public internet; everything else is as it is
    monkeypatch.setattr(connection, "refuse_private", lambda host, ip: ip == "127.0.0.2" or refuse_private(host, ip))
    server.hits.clear()
    with ImageServer("127.0.0.2") as public:
        assert fetch(public.url("jpg/x"), allow_private_hosts=False).startswith(b"\xff\xd8")
        for host in ("127.0.0.1", "localhost", "127.0.0.1.", "0x7f.1", "[::ffff:127.0.0.1]"):
            target = public.url(f"to/http://{host}:{server.server_port}/jpg/x")
            assert reason_for(target, allow_private_hosts=False).startswith("private_host")
    assert not server.hits


# --- URLs as tables have them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, meant",
    [
        ("\ufeffhttp://x.com/a", "http://x.com/a"),
        ("\u200b http://x.com/a\u2060\u3000", "http://x.com/a"),
        ("//x.com/a?b=1&amp;c=2", "http://x.com/a?b=1&c=2"),
        ("http://x.com/?a=1&amp;copy=2&lt=3", "http://x.com/?a=1&copy=2&lt=3"),
        ("http://x.com/a", "http://x.com/a"),
    ],
)
def test_copied_urls_are_mended(url, meant):
    assert mend_url(url) == meant


def test_a_url_that_cannot_be_mended_is_shown_with_its_invisible_characters():
    with pytest.raises(FetchError, match=r"not 'ht\\u200btp://x.com/a'"):
        read_url("ht\u200btp://x.com/a")
    with pytest.raises(FetchError, match=r"https://img.x.com/a.jpg\?$"):
        read_url("img.x.com/a.jpg")


# --- what a server sends -----------------------------------------------------------------------------------------

REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /jpg/x\r\n"
FINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = FINE + b"Transfer-Encoding: chunked\r\n\r\n"


def and_then_forever(start: bytes, block: bytes):
    return itertools.chain([start], itertools.repeat(block))


def endless_gzip(start: bytes):
    """A thousand bytes for each byte sent."""
    packer = zlib.compressobj(wbits=31)
    yield start
    while True:
        yield packer.compress(bytes(2**20))


WITHOUT_END = {
    "redirect": (lambda: and_then_forever(REDIRECT + b"\r\n", bytes(65536)), "ok"),
    "redirect-gzip": (lambda: endless_gzip(REDIRECT + b"Content-Encoding: gzip\r\n\r\n"), "ok"),
    "error": (lambda: endless_gzip(b"HTTP/1.1 500 Oh\r\nContent-Encoding: gzip\r\n\r\n"), "http_500: Oh"),
    "body": (lambda: and_then_forever(FINE + b"\r\n", bytes(65536)), "too_large"),
    "gzip": (lambda: endless_gzip(FINE + b"Content-Encoding: gzip\r\n\r\n"), "too_large"),
    "headers": (lambda: and_then_forever(FINE, b"X: y\r\n"), "bad_answer"),
    "large-headers": (lambda: and_then_forever(FINE, b"X: " + b"y" * 60_000 + b"\r\n"), "bad_answer"),
    "one-header": (lambda: and_then_forever(FINE + b"X: ", b"y" * 65536), "bad_answer"),
    "status": (lambda: itertools.repeat(b"HTTP" * 10_000), "bad_answer"),
    "continue": (lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "bad_answer"),
    "hints": (lambda: itertools.repeat(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100), "bad_answer"),
    "tiny-chunks": (lambda: and_then_forever(CHUNKED, b"1\r\nx\r\n" * 1000), "too_large"),
    "extensions": (lambda: and_then_forever(CHUNKED, b"1;" + b"e" * 60_000 + b"\r\nx\r\n"), "too_large"),
    "trailer": (lambda: and_then_forever(CHUNKED + b"0\r\n", b"T: x\r\n" * 1000), "too_large"),
    "negative-chunk": (lambda: and_then_forever(CHUNKED + b"-1\r\n", bytes(65536)), "bad_answer"),
    "large-chunk": (lambda: and_then_forever(CHUNKED + b"fffffffffffff\r\n", bytes(65536)), "too_large"),
}


@pytest.mark.parametrize("kind", WITHOUT_END)
def test_endless_answers_are_cut_off_in_constant_memory(server, kind):
    make, reason = WITHOUT_END[kind]
    server.answers[kind] = make()
    tracemalloc.start()
    try:
        fetch(server.url(f"raw/{kind}"), max_bytes=500_000, seconds=20)
        ended = "ok"
    except FetchError as error:
        ended = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert ended.startswith(reason)
    assert peak < 8e6  # of both ends of the connection; an endless answer would exceed any limit


def test_layers_of_gzip_are_decompressed_in_steps(server):
    bomb = gzip.compress(gzip.compress(bytes(30_000_000)))
    server.answers["layers"] = [FINE + b"Content-Encoding: gzip, gzip\r\n\r\n", bomb]
    tracemalloc.start()
    assert reason_for(server.url("raw/layers"), max_bytes=500_000).startswith("too_large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize("kind", ["status/404/x", "status/503/x", "moved/x"])
def test_a_connection_with_an_unread_body_is_not_used_again(server, kind):
    for _ in range(3):
        assert reason_for(server.url(kind)).startswith(("http_404", "http_503", "bad_url"))
        assert fetch(server.url("jpg/x")) == image_bytes(zlib.crc32(b"x"))


def test_early_hints_before_the_answer_are_skipped(server):
    server.answers["hints-first"] = [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 2, FINE + b"\r\n", b"body"]
    assert fetch(server.url("raw/hints-first")) == b"body"


@pytest.mark.parametrize(
    "answer, reason",
    [
        (b"HTTP/1.1 302 F\r\nLocation: http://[\r\n\r\n", "bad_url: redirected to 'http://['"),
        (b"HTTP/1.1 302 F\r\nLocation: http://\xc4\xe3/\r\n\r\n", "bad_url: redirected to 'http://%C4%E3/'"),
        (b"HTTP/1.1 302 F\r\n\r\n", "http_302: F"),
        (FINE + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nhello", "bad_answer: InvalidHeader Content-Length"),
        (CHUNKED + b"zz\r\nhello", "truncated"),
        (b"hello", "bad_answer: BadStatusLine hello"),
        (b"ICY 200 OK\r\n\r\n", "bad_answer: BadStatusLine ICY 200 OK"),
        (b"HTTP/1.1 999 Denied\x1b[2J\r\n\r\n", "http_999: Denied"),
        (b"HTTP/1.1 429 x\r\nRetry-After: \xb2\r\n\r\n", "http_429: x"),
        (b"HTTP/1.1 429 x\r\nRetry-After: Mon, 01 Jan 0001 00:00:00 +2359\r\n\r\n", "http_429: x"),
        (FINE + b"Content-Encoding: " + b"gzip, " * 9 + b"gzip\r\n\r\nx", "bad_encoding"),
        (b"", "connection: Remote end closed connection without response"),
    ],
)
def test_malformed_answers_have_a_reason(server, answer, reason):
    server.answers["odd"] = [answer]
    assert reason_for(server.url("raw/odd")).startswith(reason)


def test_an_image_with_status_203_is_an_image(server):
    server.answers["changed"] = [b"HTTP/1.1 203 Non-Authoritative\r\n\r\n", b"body"]
    assert fetch(server.url("raw/changed")) == b"body"


@pytest.mark.parametrize("encoding", ["br", "gzip, zstd", "ZSTD"])
def test_an_encoding_that_needs_a_package_names_it(server, encoding):
    if {name.strip().lower() for name in encoding.split(",")} <= set(HTTPResponse.CONTENT_DECODERS):
        pytest.skip(f"{encoding} is installed")
    server.answers["packed"] = [FINE + f"Content-Encoding: {encoding}\r\n\r\n".encode(), b"body"]
    with pytest.raises(FetchError, match="bad_encoding: (br|zstd), though none was requested; `pip install"):
        fetch(server.url("raw/packed"))


def test_a_cookie_lives_as_long_as_the_redirects_of_one_request(server):
    assert fetch(server.url("cookie/x")) == fetch(server.url("cookie/x")) == image_bytes(zlib.crc32(b"x"))
    assert server.hits["/cookie/x"] == 4  # the second request started without
    elsewhere = ImageServer("127.0.0.2") if sys.platform == "linux" else contextlib.nullcontext()
    with elsewhere as other:
        if other:
            server.answers["away"] = [
                f"HTTP/1.1 302 F\r\nSet-Cookie: seen=yes\r\nLocation: {other.url('jpg/a')}\r\n\r\n".encode()
            ]
            fetch(server.url("raw/away"))
            assert "Cookie" not in other.headers["/jpg/a"]  # it is of another host


@pytest.mark.parametrize("location", ["/jpg/你.jpg".encode("gb18030"), "/jpg/你.jpg".encode()])
def test_a_redirect_in_raw_bytes_requests_these_bytes(server, location):
    server.hits.clear()
    server.answers["bytes"] = [b"HTTP/1.1 302 F\r\nLocation: " + location + b"\r\n\r\n"]
    assert fetch(server.url("raw/bytes")).startswith(b"\xff\xd8")
    escaped = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in location)
    assert server.hits[escaped] == 1


def odd_answer(picked: random.Random) -> bytes:
    """An answer put together from valid, invalid and nonsense lines, sometimes with bytes changed."""
    statuses = [
        FINE[:-2],
        REDIRECT[:18],
        b"HTTP/1.1 429 x",
        b"HTTP/1.1 204",
        b"HTTP/0.9 200",
        b"HTTP/1.1 999 \xff",
        b"",
    ]
    numbers = [b"5", b"0", b"-1", b"\xb2", b"5, 7", b"9" * 5000, b"1e3", b"nan", b"Wed, 99 Oct 99999 00:00:00 -2359"]
    places = [b"/jpg/x", b"http://[", b"\xc4\xe3", b"", b"//", b"http://x:99999/", b"http://%zz/", b"?" * 60_000]
    codings = [b"gzip", b"deflate", b"br", b"chunked", b"gzip,gzip", b"\xff"]
    names = {b"Content-Length": numbers, b"Retry-After": numbers, b"Location": places}
    names |= {b"Content-Encoding": codings, b"Transfer-Encoding": codings, b"X-Robots-Tag": codings, b"\x00": places}
    bodies = [
        b"",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello",
        b"f" * 30 + b"\r\nhello",
        b"\x1f\x8b\x08\x00",
        image_bytes(),
    ]
    chosen = [(name, picked.choice(names[name])) for name in picked.choices(list(names), k=picked.randrange(5))]
    lines = [picked.choice(statuses), *(name + b": " + value for name, value in chosen)]
    raw = bytearray(picked.choice([b"\r\n", b"\n", b"\r"]).join(lines) + b"\r\n\r\n" + picked.choice(bodies))
    for _ in range(picked.choice([0, 0, 3]) if raw else 0):
        raw[picked.randrange(min(len(raw), 200))] = picked.randrange(256)
    return bytes(raw)


def test_no_answer_raises_anything_but_a_fetch_error(server):
    picked = random.Random(0)
    ended = set()
    for _ in range(500):
        server.answers["fuzz"] = [odd_answer(picked)]
        try:
            fetch(server.url("raw/fuzz"), max_bytes=100_000)
        except FetchError as error:
            ended.add(error.reason)
    assert {"bad_answer", "bad_url", "http_999", "http_302", "bad_encoding", "truncated"} <= ended


def test_too_many_open_files_are_not_blamed_on_the_server(server):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fetch(server.url("jpg/x"))
    with ImageServer() as other:
        lowest = os.dup(0)
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            with pytest.raises(OSError, match="Too many open files; fewer --num_threads"):
                fetch(other.url("jpg/x"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- what is sent -------------------------------------------------------------------------------------------


def test_the_referer_is_filled_in_for_each_url(server):
    assert fetch(server.url("hop/1/x"), referer="{origin}/")
    assert server.headers["/hop/1/x"]["Referer"] == server.headers["/jpg/x"]["Referer"] == server.url("")
    fetch(server.url("jpg/y"), referer="https://example.com/?from={url}")
    assert server.headers["/jpg/y"]["Referer"] == f"https://example.com/?from={server.url('jpg/y')}"
    fetch(server.url("jpg/z"))
    assert "Referer" not in server.headers["/jpg/z"]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificates_are_verified_except_for_the_named_hosts():
    with ImageServer(tls=True) as secure:
        assert reason_for(secure.url("jpg/x")).startswith("tls: ")
        assert reason_for(secure.url("jpg/x"), no_verify_tls=("7.0.0.1", "localhost")).startswith("tls: ")
        assert fetch(secure.url("jpg/x"), no_verify_tls=("127.0.0.1",)).startswith(b"\xff\xd8")
        elsewhere = secure.url(f"to/https://localhost:{secure.server_port}/jpg/x")
        assert reason_for(elsewhere, no_verify_tls=("127.0.0.1",)).startswith("tls: ")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_https_goes_through_a_proxy_tunnel_and_its_certificate_is_verified(server):
    limits = dict(proxy=f"http://{server.address}", allow_private_hosts=False)
    url = "https://images.example/jpg/x"
    server.hits.clear()
    with ImageServer(tls=True) as secure:
        server.tunnels_to = secure.server_address
        assert reason_for(url, **limits).startswith("tls: ") and not secure.hits
        assert fetch(url, **limits, no_verify_tls=("images.example",)) == image_bytes(zlib.crc32(b"x"))
        assert secure.hits == {"/jpg/x": 1}
    assert server.hits == {"CONNECT images.example:443": 2}


@pytest.mark.parametrize(
    "limits",
    [{"referer": "{host}/"}, {"referer": "a\r\nX: y"}, {"user_agent": "测试"}, {"no_verify_tls": ("http://x/",)}]
    + [{"proxy": proxy} for proxy in ("socks5://x:1", "x:1", "http://", "http://[")],
)
def test_impossible_limits_are_refused_at_the_start(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        FetchLimits(**limits)


def test_credentials_in_a_url_go_to_its_host_only(server):
    server.answers["away"] = [f"HTTP/1.1 302 F\r\nLocation: {server.url('jpg/auth')}\r\n\r\n".encode()]
    fetch(f"http://me:pass@{server.address}/raw/away")
    assert server.headers["/raw/away"]["Authorization"] == "Basic bWU6cGFzcw=="
    assert "Authorization" not in server.headers["/jpg/auth"]
    fetch(f"http://{quote('我')}@{server.address}/jpg/user")
    assert server.headers["/jpg/user"]["Authorization"] == f"Basic {base64.b64encode('我:'.encode()).decode()}"
    fetch("http://1.1.1.1/jpg/x", proxy=f"http://me:pass@{server.address}")
    assert server.headers["http://1.1.1.1/jpg/x"]["Proxy-Authorization"] == "Basic bWU6cGFzcw=="
