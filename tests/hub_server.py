"""A local server with the part of the Hub's API for uploads and downloads. Commits are kept in memory."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """Serves a model `somebody/clip` on a free port.

    Args:
        files: name → content of the files of the model.

    Attributes:
        commits: the files of each commit, oldest first.
        asked: the paths of all requests for files.
        refuse_with: status of the answer to every request for a file, as from a server that is not a Hub.
    """

    def __init__(self, files: dict[str, bytes] | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.commits, self.asked, self.refuse_with = files or {}, [], [], None
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if "/resolve/" in self.path:
            self._give_file()
        elif "/tree/" in self.path:
            self._answer([])
        else:
            self._answer({"sha": "0" * 40, "id": "somebody/clip", "siblings": []})

    do_HEAD = do_GET

    def _give_file(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path.rpartition("/")[2])
        if self.server.refuse_with:
            self._send(self.server.refuse_with, b"")
        elif not self.path.startswith("/somebody/clip/"):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            digest = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"X-Repo-Commit": "0" * 40, "ETag": f'"{digest}"'})

    def do_POST(self):
        body = self._body()
        if self.path == "/api/repos/create":
            self._answer({"url": f"{self.server.url}/somebody/clip", "id": "somebody/clip"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
            self._answer({"commitUrl": f"{self.server.url}/somebody/clip/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass
