"""The server of a gallery: what it answers, to whom, and what it refuses."""

import concurrent.futures
import contextlib
import gc
import io
import json
import os
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from conftest import CAPTIONS, ENVIRONMENT, ROOT, python, run_python
from PIL import Image

from component.image import load
from component.search import serving
from component.search.client import ask_running
from component.search.open import open_searcher
from component.search.query import Filter, Query
from component.search.question import MAX_BODIES, Question
from component.search.writer import GalleryWriter

pytest_plugins = ["galleries"]


def ask(address: str, route: str, options: dict, image: bytes = b"", **headers) -> requests.Response:
    return requests.post(f"{address}/api/{route}", json.dumps(options).encode() + b"\n" + image, headers=headers)


def encoded(image: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    image.save(file, name)
    return file.getvalue()


def test_search_classification_and_images_over_http(server, folder):
    address = server()
    content = (folder / "blue" / "0.png").read_bytes()
    hits = ask(address, "search", {"top_k": 3}, content).json()["hits"]
    assert hits[0]["path"] == str(folder / "blue" / "0.png") and len(hits) == 3
    small, whole = (requests.get(f"{address}/{kind}/{hits[0]['digest']}") for kind in ("thumbnail", "image"))
    assert small.headers["content-type"] == "image/jpeg" and whole.content == content
    assert whole.headers["content-type"] == "image/png"
    bars = ask(address, "classify", {"labels": CAPTIONS[:3]}, content).json()["labels"]
    assert sum(bar["share"] for bar in bars) == pytest.approx(1)
    assert {bar["label"] for bar in bars} == set(CAPTIONS[:3])


def test_later_hits_are_those_that_follow(server):
    address = server()
    whole = ask(address, "search", {"texts": ["红"], "top_k": 24}).json()["hits"]
    pages = [ask(address, "search", {"texts": ["红"], "top_k": 10, "offset": i}).json()["hits"] for i in (0, 10, 20)]
    assert sum(pages, []) == whole and len(whole) == 24


def test_a_query_of_minus_texts_alone_is_allowed(server):
    hits = ask(server(), "search", {"minus": ["红"], "top_k": 24}).json()["hits"]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True) and len(hits) == 24


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_formats_that_browsers_do_not_show_are_sent_in_full_as_jpeg(server, index, folder, kind):
    Image.new("RGB", (1500, 900), "green").save(folder / f"large.{kind.lower()}")
    address = server()
    index()
    hit = ask(address, "search", {"top_k": 1}, (folder / f"large.{kind.lower()}").read_bytes()).json()["hits"][0]
    whole = requests.get(f"{address}/image/{hit['digest']}")
    assert whole.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(whole.content)).size == (1500, 900)


def test_a_zip_holds_the_images_as_they_are(server, folder, searcher):
    images = list(searcher.gallery.images())[:3]
    os.remove(images[2].path)
    answer = requests.get(f"{server()}/images.zip?ids={','.join(str(image.row) for image in images)},99,x")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    for image in images[:2]:
        assert archive.read(os.path.basename(image.path)) == open(image.path, "rb").read()
    unreadable = archive.read("unreadable.txt").decode()
    assert os.path.basename(images[2].path) in unreadable and "#99:" in unreadable


def test_a_zip_of_too_many_images_is_refused_rather_than_cut(server):
    answer = requests.get(f"{server()}/images.zip?ids={','.join(map(str, range(501)))}")
    assert answer.status_code == 400 and answer.json()["code"] == "too_many"


def test_an_overview_names_folders_and_some_images(server, folder):
    about = requests.get(f"{server()}/api/about").json()
    assert about["folders"] == {str(folder / "blue"): 12, str(folder / "红"): 12}
    assert about["images"] == len(about["samples"]) == 24


@pytest.mark.parametrize("name", ["two  blanks", "nbsp\xa0here", "wide\u3000blank", "\u202egnp.evil", "\udcff"])
def test_names_are_returned_exactly(server, index, folder, name):
    path = folder / f"{name}.png"
    Image.new("RGB", (30, 30), "red").save(path)
    address = server()
    index()
    hit = ask(address, "search", {"top_k": 1}, path.read_bytes()).json()["hits"][0]
    assert hit["path"] == str(path)
    assert requests.get(f"{address}/thumbnail/{hit['digest']}").ok


# ---- what is refused ----


@pytest.mark.parametrize(
    "path",
    ["/image/../../etc/passwd", "/image/..%2f..%2fetc%2fpasswd", "/image/%2e%2e/x", "/thumbnail/-1", "/image/1/",
     "/image//etc/passwd", "/image/24", f"/image/{'9' * 5000}", "/page/../server.py", "/..;/", f"/image/{'0' * 32}"],
)  # fmt: skip
def test_nothing_but_images_of_the_gallery_is_reachable(server, path):
    request = requests.Request("GET", server()).prepare()
    request.url += path  # as it is, not normalised
    answer = requests.Session().send(request, allow_redirects=False)
    assert answer.status_code == 404
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_image_that_was_deleted_or_changed_is_not_shown(server, index, folder, searcher):
    address = server()
    digests = {os.path.basename(image.path): image.digest.hex() for image in searcher.gallery.images()}
    (folder / "blue" / "0.png").write_bytes(b"secret")
    assert requests.get(f"{address}/image/{digests['0.png']}").status_code == 410
    os.remove(folder / "blue" / "2.png")
    index()
    assert requests.get(f"{address}/image/{digests['2.png']}").status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "[::2]"])
@pytest.mark.parametrize("path", ["/", "/image/1/"])
def test_a_foreign_host_is_refused(server, host, path):
    answer = requests.get(server() + path, headers={"Host": host}, allow_redirects=False)
    assert answer.status_code == 403 and answer.headers["x-content-type-options"] == "nosniff"


def test_a_server_for_others_answers_to_addresses_and_names_in_any_case(server):
    address = server(any_address=True, hosts=("MyPC",))
    for host in ("192.168.1.7:8642", "[fe80::1]", "mypc", "MYPC:80"):
        assert requests.get(address, headers={"Host": host}).ok
    assert requests.get(address, headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_from_other_sites_cause_no_work(server, searcher, headers):
    address, digest = server(), next(searcher.gallery.images()).digest.hex()
    assert ask(address, "search", {"texts": ["红"]}, **headers).status_code == 403
    for path in (f"/image/{digest}", f"/thumbnail/{digest}", "/api/about", "/images.zip?ids=0"):
        assert requests.get(address + path, headers=headers).status_code == 403
    assert requests.get(address, headers={"Sec-Fetch-Site": "cross-site"}).ok  # a link from elsewhere
    assert ask(address, "search", {"texts": ["红"]}, Origin=address).ok


def test_every_request_needs_the_token_and_two_servers_keep_separate_cookies(server):
    addresses = {token: server(token=token) for token in ("first", "second")}
    for path in ("/", "/api/about", f"/image/{'0' * 32}", "/?token=wrong", "/?token=%00", "/?token=%ff"):
        assert requests.get(addresses["first"] + path).status_code == 403
    session = requests.Session()
    for token, address in addresses.items():
        assert session.get(f"{address}/?token={token}").ok
    assert all(session.get(f"{address}/api/about").ok for address in addresses.values())


@pytest.mark.parametrize(
    ("options", "image", "status"),
    [
        ({"texts": ["红"]}, b"x" * 50_000_000, 413),
        ({}, encoded(Image.new("1", (30_000, 30_000)), "PNG"), 400),
        ({}, b"no image", 400),
        ({}, b"", 400),
        ({"texts": ["x" * 501]}, b"", 400),
        ({"texts": "红"}, b"", 400),
        ({"texts": ["\ud800"]}, b"", 400),
        ({"texts": ["红"], "top_k": 10**9}, b"", 400),
        ({"texts": ["红"], "top_k": 10**4000}, b"", 400),
        ({"texts": ["红"], "top_k": float("nan")}, b"", 400),
        ({"texts": ["红"], "folder": ["a"]}, b"", 400),
        ({"texts": ["红"], "folder": "\ud800"}, b"", 400),
        ({"texts": ["红"], "until": 253_402_300_799}, b"", 200),
        ({"texts": ["红"], "since": -1e12}, b"", 200),
        ({"texts": ["红"], "until": 1e300}, b"", 400),
        ({"like": [99]}, b"", 400),
        ({"like": [2**70]}, b"", 400),
        ({"like": list(range(9))}, b"", 400),  # not an answer to the first of them
        ([1], b"", 400),
    ],
)
def test_no_request_ends_in_a_traceback(server, options, image, status):
    answer = ask(server(), "search", options, image)
    assert answer.status_code == status and (status == 200 or answer.json()["code"])


def test_a_number_of_many_digits_and_an_aborted_upload_are_not_server_errors(server, caplog):
    address = server()
    assert requests.post(f"{address}/api/search", b'{"top_k": ' + b"9" * 5000 + b"}\n").status_code == 400
    with socket.create_connection(address.removeprefix("http://").split(":")) as client:
        client.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{}")
    assert ask(address, "search", {"texts": ["红"]}).ok
    assert not [record for record in caplog.records if record.exc_info]


# ---- clients that stall ----


def stalled(address: str, content: bytes) -> socket.socket:
    client = socket.create_connection(address.removeprefix("http://").split(":"))
    client.sendall(content)
    return client


def test_stalled_clients_keep_no_one_waiting(server, monkeypatch):
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr("component.search.question.CHUNK_SECONDS", 0.5)
    address = server()
    upload = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n{}\n" + bytes(200_000)
    clients = [stalled(address, b"GET / HT") for _ in range(250)]
    clients += [stalled(address, upload) for _ in range(3 * MAX_BODIES)]
    assert ask(address, "search", {"texts": ["红"]}).ok
    assert ask(address, "search", {"top_k": 1}, encoded(Image.new("RGB", (300, 300)), "BMP")).ok
    for client in clients[:250]:
        client.settimeout(20)
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass
        client.close()
    for client in clients[250:]:
        client.settimeout(20)
        assert client.recv(12) == b"HTTP/1.1 408"
        client.close()


def test_many_uploads_of_large_images_are_decoded_one_at_a_time(server, monkeypatch):
    running, most, lock = [0], [0], threading.Lock()
    decode = load.decode

    def counted(*args, **options):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return decode(*args, **options)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr("component.search.server.decode", counted)
    address = server()
    image = encoded(Image.fromarray(np.zeros((2000, 2000), np.uint8)), "PNG")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(address, "search", {"top_k": 1}, image), range(12)))
    assert all(answer.ok for answer in answers) and most == [1]


@pytest.mark.parametrize(
    "image", [b"no image", encoded(Image.new("L", (500, 500)), "PNG")[:100]], ids=["not an image", "damaged"]
)
def test_an_image_that_is_refused_does_not_stay_in_memory(server, image):
    address = server()
    gc.collect()
    gc.disable()  # as between two of its collections
    try:
        assert ask(address, "search", {"top_k": 1}, image).status_code == 400
        end = time.monotonic() + 5  # for the thread that answered to leave its frames
        while any(type(thing) is Question for thing in gc.get_objects()):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        gc.enable()


# ---- the script ----


@contextlib.contextmanager
def running_script(gallery, port: int) -> Iterator[subprocess.Popen]:
    command = python("search_image.py", "serve", "--gallery", gallery, "--port", port, "--device", "cpu")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT, text=True)
    try:
        assert server.stdout.readline().startswith(f"Open http://127.0.0.1:{port}/ ")
        yield server
    finally:
        server.kill()
        server.wait()


def memory(server: subprocess.Popen, key: str) -> int:
    """Bytes that a process takes: VmRSS now, VmHWM at the most so far."""
    with open(f"/proc/{server.pid}/status") as file:
        (line,) = (line for line in file if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak of a process")
def test_huge_images_posted_at_once_take_no_more_memory_than_one_may(index, tmp_path):
    index()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    huge = encoded(Image.new("L", (9400, 9400)), "PNG")
    cut = huge[: len(huge) * 2 // 3]
    with running_script(tmp_path / "gallery", port) as server, concurrent.futures.ThreadPoolExecutor(12) as pool:

        def post(images: list[bytes], origin: str) -> set[int]:
            headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin" if origin == address else "cross-site"}
            answers = pool.map(lambda image: ask(address, "search", {"top_k": 1}, image, **headers), images)
            return {answer.status_code for answer in answers}

        assert post([encoded(Image.new("L", (50, 50)), "PNG")], address) == {200}
        before = memory(server, "VmHWM")
        assert post([huge] * 12, "http://evil.example") == {403}
        assert memory(server, "VmHWM") - before < 2**24
        # On a busy machine some wait for their turn longer than a request may take.
        assert post([huge, cut] * 6, address) <= {200, 400, 503}
        assert memory(server, "VmHWM") - before < load.MAX_DECODE_BYTES
        assert memory(server, "VmRSS") - before < 2**27  # goes back to the system


def test_a_server_answers_the_command_line_as_long_as_its_model_is_the_gallerys(server, searcher):
    gallery, query = searcher.gallery, Query(texts=["红"])
    with serving.announced(gallery, serving.Address(None, None, "", f"{server()}/{{}}")):
        assert len(ask_running(gallery.folder, query, 3, Filter())["hits"]) == 3
        with contextlib.closing(GalleryWriter(gallery.folder)) as writer:  # as indexing with another text half does
            writer.take_texts_of(fingerprint={**gallery.about["fingerprint"], "text": {}})
        assert ask_running(gallery.folder, query, 3, Filter()) is None


def test_the_running_server_answers_a_query_and_ends_at_once(index, folder, tmp_path):
    index()
    gallery = tmp_path / "gallery"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        taken = run_python("search_image.py", "serve", "--gallery", gallery, "--port", port)
        assert taken.returncode == 2 and "cannot be used" in taken.stderr and "Open http" not in taken.stdout
    with running_script(gallery, port) as server:
        image = folder / "blue" / "0.png"
        query = ["search_image.py", "query", "--gallery", gallery, "--image", image, "--json", tmp_path / "a.json"]
        done = run_python("-X", "importtime", *query)
        assert done.returncode == 0 and "Answered by the running server" in done.stderr, done.stderr
        assert "| torch" not in done.stderr.replace("  ", "")
        answer = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[str(image)]
        searcher = open_searcher(str(gallery), device="cpu")
        hits = searcher.search(searcher.embed(Query(images=[str(image)])))
        assert [hit["path"] for hit in answer["hits"]] == [hit.image.path for hit in hits]
        half_open = stalled(
            f"http://127.0.0.1:{port}", b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        started = time.monotonic()
        server.terminate()
        server.wait(timeout=30)
        assert time.monotonic() - started < 10 and not (gallery / "serve.json").exists()
        half_open.close()
