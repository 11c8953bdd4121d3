"""A stand-in for the part of the Hub's API that an upload uses; what is committed is kept in memory."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """Serves from port 0 on. `commits` has the files of each commit, name → content, oldest first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: list[dict[str, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer({"sha": "0" * 40, "id": "somebody/clip", "siblings": []})

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

    def _answer(self, content: dict):
        content = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass
