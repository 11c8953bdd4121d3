"""The web page's server: what it answers, to whom, and what it refuses."""

import io
import json
import os

import pytest
import requests
from conftest import CAPTIONS
from PIL import Image

pytest_plugins = ["galleries"]


def ask(address: str, route: str, options: dict, image: bytes = b"") -> requests.Response:
    return requests.post(f"{address}/api/{route}", data=json.dumps(options).encode() + b"\n" + image)


def test_search_classification_and_images_over_http(server, folder, searcher):
    address = server()
    content = (folder / "blue" / "0.png").read_bytes()
    hits = ask(address, "search", {"top_k": 3}, content).json()["hits"]
    assert hits[0]["path"] == str(folder / "blue" / "0.png") and len(hits) == 3
    small, whole = (requests.get(f"{address}/{kind}/{hits[0]['id']}") for kind in ("thumbnail", "image"))
    assert small.headers["content-type"] == "image/jpeg" and whole.content == content
    assert (
        whole.headers["content-type"] == "image/png"
        and "default-src 'none'" in whole.headers["content-security-policy"]
    )
    bars = ask(address, "classify", {"labels": CAPTIONS[:3]}, content).json()["labels"]
    assert sum(bar["share"] for bar in bars) == pytest.approx(1) and {bar["label"] for bar in bars} == set(
        CAPTIONS[:3]
    )


@pytest.mark.parametrize(
    "path",
    ["/image/../../etc/passwd", "/image/..%2f..%2fetc%2fpasswd", "/image/%2e%2e/x", "/thumbnail/-1", "/image/1e3",
     "/image//etc/passwd", "/image/24", "/image/99999999999999999999999", "/page/../server.py", "/..;/"],
)  # fmt: skip
def test_nothing_but_rows_is_reachable(server, path):
    request = requests.Request("GET", server()).prepare()
    request.url += path  # as it stands, not tidied up
    assert requests.Session().send(request).status_code == 404


def test_an_image_that_was_deleted_or_changed_is_not_shown(server, index, folder, searcher):
    address = server()
    rows = {os.path.basename(image.path): image.row for image in searcher.gallery.images()}
    (folder / "blue" / "0.png").write_bytes(b"secret")
    assert requests.get(f"{address}/image/{rows['0.png']}").status_code == 410
    os.remove(folder / "blue" / "2.png")
    index()
    assert requests.get(f"{address}/image/{rows['2.png']}").status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "[::2]"])
def test_a_foreign_host_is_refused(server, host):
    assert requests.get(server(), headers={"Host": host}).status_code == 403


def test_with_a_token_nothing_goes_without(server):
    address = server(token="secret")
    for path in ("/", "/api/about", "/image/0", "/?token=wrong", "/?token=%00"):
        assert requests.get(address + path).status_code == 403
    session = requests.Session()
    assert session.get(f"{address}/?token=secret").status_code == 200
    assert session.get(f"{address}/image/0").status_code == 200


def encoded(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def bomb() -> bytes:
    return encoded(Image.new("1", (30_000, 30_000)), "PNG")


@pytest.mark.parametrize(
    ("options", "image", "status"),
    [
        ({"texts": ["红"]}, b"x" * 50_000_000, 413),
        ({}, bomb(), 400),
        ({}, b"no image", 400),
        ({}, b"", 400),
        ({"texts": ["x" * 501]}, b"", 400),
        ({"texts": "红"}, b"", 400),
        ({"texts": ["红"], "top_k": 10**9}, b"", 400),
        ({"texts": ["红"], "top_k": float("nan")}, b"", 400),
        ({"texts": ["红"], "folder": ["a"]}, b"", 400),
        ({"texts": ["红"], "like": 99}, b"", 400),
        ([1], b"", 400),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_with_a_reason(server, options, image, status):
    answer = ask(server(), "search", options, image)
    assert answer.status_code == status and answer.json()["error"]
