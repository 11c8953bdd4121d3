"""A small object store on a real socket: files with ETags, in parts, and lists of them as S3 gives them."""

import hashlib
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class ObjectStore(ThreadingHTTPServer):
    """Answers GET and HEAD for `objects`, /bucket/key → bytes; a context manager.

    Attributes:
        url: of its root.
        faults: for each request that begins with this path, in order: a status, or seconds of silence after half of
            the answer.
        requests: method → number.
        sent: bytes of the answers.
        has_etags: False: only Last-Modified.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[int | float]] = {}
        self.has_etags = True
        self.forget()

    def forget(self):
        self.requests, self.sent = Counter(), 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        path, store = unquote(url.path), self.server
        store.requests[self.command] += 1
        fault = store.faults.get(path, [])
        fault = fault.pop(0) if fault else None
        if isinstance(fault, int):
            return self.answer(fault, b"<Error><Code>SlowDown</Code></Error>" if fault == 503 else b"")
        if "list-type" in parse_qs(url.query):
            return self.answer(200, self.listing(path, parse_qs(url.query).get("prefix", [""])[0]))
        if path not in store.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        content, headers = store.objects[path], {"Last-Modified": "Mon, 30 Nov 2026 10:00:00 GMT"}
        if store.has_etags:
            headers["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        if self.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag"):
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        if (span := self.headers.get("Range")) and self.command == "GET":
            start, _, stop = span.removeprefix("bytes=").partition("-")
            part = content[int(start) : int(stop) + 1]
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            return self.answer(206, part, headers, fault)
        return self.answer(200, content, headers, fault)

    do_HEAD = do_GET

    def listing(self, bucket: str, prefix: str) -> bytes:
        found = {key: content for key, content in self.server.objects.items() if key.startswith(f"{bucket}/{prefix}")}
        contents = "".join(
            f"<Contents><Key>{escape(key[len(bucket) + 1 :])}</Key><Size>{len(content)}</Size>"
            f"<ETag>&quot;{hashlib.md5(content).hexdigest()}&quot;</ETag>"
            "<LastModified>2026-11-30T10:00:00.123Z</LastModified></Contents>"
            for key, content in sorted(found.items())
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()

    def answer(self, status: int, body: bytes, headers: dict[str, str] = {}, silence: float | None = None):  # noqa: B006
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.sent += len(body)
        if silence is not None:
            self.wfile.write(body[: len(body) // 2])
            time.sleep(silence)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *args):
        pass
