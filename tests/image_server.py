"""A web server that misbehaves on request, for the tests of the download: the first part of the path says how."""

import contextlib
import gzip
import io
import socket
import socketserver
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image


def image_bytes(seed: int = 0, size: tuple[int, int] = (64, 48), format: str = "JPEG", **options) -> bytes:
    """An encoded image, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, format, **options)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A well-formed PNG header that promises 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class ImageServer(ThreadingHTTPServer):
    """Runs in a thread of its own as a context manager. `hits` counts requests by path, `peak` the most at once.

    Attributes:
        answers: what raw/NAME sends, byte for byte, block by block, perhaps without an end.
        tunnels_to: where a client that sends CONNECT is led, whatever the name.

    Args:
        tls: with a certificate that no authority signed.
        port: 0 for any that is free; one that an earlier server had, to come back.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", tls: bool = False, port: int = 0):
        super().__init__((host, port), _Handler)
        self.scheme = "https" if tls else "http"
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(Path(__file__).with_name("self_signed.pem"))
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.answers: dict[str, Iterable[bytes]] = {}
        self.tunnels_to: tuple[str, int] | None = None
        self.hits: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.lock = threading.Lock()
        self.running = self.peak = 0
        self.is_over = False
        self.thawed = threading.Event()  # cleared: requests are accepted, and wait
        self.thawed.set()
        self.admitted: list[float] = []  # times of the requests that kind_limited let in

    @property
    def address(self) -> str:
        return f"{self.server_name}:{self.server_port}"

    def url(self, path: str) -> str:
        return f"{self.scheme}://{self.address}/{path}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        """Refuse connections from now on, and close those that are open at their next request."""
        self.is_over = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # the tests hang up on purpose

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own method asks a name server for this machine's name
        self.server_name, self.server_port = self.server_address


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are written separately: 40 ms each time

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.thawed.wait()
        if server.is_over:
            self.close_connection = True
            return
        with server.lock:
            server.hits[self.path] += 1
            server.headers[self.path] = dict(self.headers)
            server.running += 1
            server.peak = max(server.peak, server.running)
        try:
            path = self.path if self.path.startswith("/") else urlsplit(self.path).path  # asked as a proxy
            kind, _, rest = unquote(path).lstrip("/").partition("/")
            getattr(self, f"kind_{kind}")(rest)
        finally:
            with server.lock:
                server.running -= 1

    def do_CONNECT(self):
        self.server.hits[f"CONNECT {self.path}"] += 1
        self.close_connection = True
        with socket.create_connection(self.server.tunnels_to) as far:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self.pass_on, args=(far, self.connection))
            back.start()
            self.pass_on(self.connection, far)
            back.join()

    @staticmethod
    def pass_on(source: socket.socket, target: socket.socket):
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    def answer(self, body: bytes = b"", code: int = 200, content_type: str = "image/jpeg", **headers):
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def kind_jpg(self, rest):
        self.answer(image_bytes(zlib.crc32(rest.encode())))

    def kind_slow(self, rest):
        time.sleep(0.1)
        self.kind_jpg(rest)

    def kind_third(self, rest):
        """A connection brings two answers, and is closed when the third request comes."""
        self.served = getattr(self, "served", 0) + 1
        if self.served < 3:
            self.kind_jpg(rest)
        else:
            self.close_connection = True

    def kind_limited(self, rest):
        """limited/40/x: at most 40 requests in any second, 429 for the others."""
        server, now = self.server, time.monotonic()
        with server.lock:
            recent = [moment for moment in server.admitted if moment > now - 1]
            is_admitted = len(recent) < int(rest.partition("/")[0])
            server.admitted = [*recent, now] if is_admitted else recent
        if is_admitted:
            self.kind_jpg(rest)
        else:
            self.answer(b"too many", 429)

    def kind_cookie(self, rest):
        """The image only for a client that returns the cookie of the redirect to the same URL."""
        if "seen=yes" in self.headers.get("Cookie", ""):
            self.kind_jpg(rest)
        else:
            self.answer(b"", 302, Location=self.path, Set_Cookie="seen=yes; Path=/")

    def kind_large(self, rest):
        self.answer(image_bytes(1, (600, 400), exif=self.turned()))

    @staticmethod
    def turned() -> Image.Exif:
        exif = Image.Exif()
        exif[0x0112] = 6  # taken with the camera held upright: to be turned by 90 degrees
        return exif

    def kind_png(self, rest):
        self.answer(image_bytes(2, format="PNG"), content_type="image/png")

    def kind_gif(self, rest):
        self.answer(image_bytes(3, format="GIF"), content_type="image/gif")

    def kind_animated(self, rest):
        frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
        buffer = io.BytesIO()
        frames[0].save(buffer, rest.partition("/")[0], save_all=True, append_images=frames[1:], duration=100)
        self.answer(buffer.getvalue())

    def kind_html(self, rest):
        self.answer(b"<!DOCTYPE html><html><body>not here any more</body></html>")

    def kind_svg(self, rest):
        self.answer(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')

    def kind_noise(self, rest):
        self.answer(bytes(range(256)) * 8)

    def kind_empty(self, rest):
        self.answer()

    def kind_cut(self, rest):
        whole = image_bytes(4)
        self.answer(whole[: len(whole) // 2])

    def kind_hangup(self, rest):
        whole = image_bytes(5)
        self.answer(whole[: len(whole) // 2], Content_Length=str(len(whole)))
        self.close_connection = True

    def kind_bomb(self, rest):
        self.answer(huge_png())

    def kind_endless(self, rest):
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(b"\xff" * 65536)

    def kind_announced(self, rest):
        self.answer(b"\xff" * 100, Content_Length=str(10**12))
        self.close_connection = True

    def kind_mislabelled(self, rest):
        self.answer(image_bytes(6), content_type="text/html; charset=utf-8")

    def kind_gzip(self, rest):
        self.answer(gzip.compress(image_bytes(7)), Content_Encoding="gzip")

    def kind_gzipbomb(self, rest):
        self.answer(gzip.compress(b"\0" * 5_000_000), Content_Encoding="gzip")

    def kind_badgzip(self, rest):
        self.answer(b"this is not gzip", Content_Encoding="gzip")

    def kind_noai(self, rest):
        self.answer(image_bytes(8), X_Robots_Tag="nosnippet, NoAI")

    def kind_hang(self, rest):
        time.sleep(20)
        self.close_connection = True

    def kind_drip(self, rest):
        body = image_bytes(9)
        self.answer(b"", Content_Length=str(len(body)))
        for value in body:
            self.wfile.write(bytes([value]))
            time.sleep(0.2)

    def kind_steady(self, rest):
        self.answer(b"", Content_Length="6000")
        for _ in range(20):
            self.wfile.write(bytes(300))
            time.sleep(0.2)

    def kind_headerdrip(self, rest):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(100):
            self.wfile.write(b"a")
            time.sleep(0.2)

    def kind_status(self, rest):
        self.answer(b"sorry", int(rest.partition("/")[0]))

    def kind_flaky(self, rest):
        """503 until the third request."""
        if self.server.hits[self.path] < 3:
            self.answer(b"busy", 503)
        else:
            self.kind_jpg(rest)

    def kind_busy(self, rest):
        """429 with `seconds`, `date` or `forever` as Retry-After; an image from the second request on."""
        with self.server.lock:
            self.server.hits["asked", rest] += 1
            first = self.server.hits["asked", rest] == 1
        wait = {"seconds": "1", "date": formatdate(time.time() + 2, usegmt=True), "forever": "86400"}
        if first:
            self.answer(b"slow down", 429, Retry_After=wait[rest.partition(".")[0]])
        else:
            self.kind_jpg(rest)

    def kind_hop(self, rest):
        """hop/3/x.jpg is three redirects away from an image."""
        left, _, name = rest.partition("/")
        self.answer(b"", 302, Location=f"/hop/{int(left) - 1}/{name}" if int(left) > 1 else f"/jpg/{name}")

    def kind_to(self, rest):
        self.answer(b"", 302, Location=rest)

    def kind_moved(self, rest):
        self.answer(b"<html>It is somewhere else.</html>", 301, Location="somewhere:else")

    def kind_raw(self, rest):
        self.close_connection = True
        for block in self.server.answers[rest]:
            self.wfile.write(block)
