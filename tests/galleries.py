"""Fixtures of the tests on galleries: images, an index function, a searcher and a real server."""

import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from component.search.embed import Loading
from component.search.index import update
from component.search.open import gallery_to_write, open_searcher
from component.search.scan import Sources


@pytest.fixture
def folder(tmp_path):
    """24 different images in two folders; their gallery is not made yet."""
    folder = tmp_path / "photos"
    for number in range(24):
        subfolder = folder / ("红" if number % 2 else "blue")
        subfolder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(subfolder / f"{number}.png")
    return folder


@pytest.fixture
def index(bert_clip_path, folder, tmp_path):
    """Index sources, by default `folder`, into `tmp_path / gallery`."""

    def index(*sources, gallery="gallery", batch_size=5, image_path=None, exclude=(), columns=None):
        found = Sources([str(source) for source in sources or [folder]], image_path, exclude, columns)
        with gallery_to_write(str(tmp_path / gallery), bert_clip_path, "cpu") as opened:
            return update(*opened, found, Loading(batch_size, num_workers=0))

    return index


@pytest.fixture
def searcher(index, tmp_path):
    index()
    return open_searcher(str(tmp_path / "gallery"), device="cpu")


@pytest.fixture
def server(searcher):
    """A function that starts a real server for some `Access` and returns its address."""
    pytest.importorskip("uvicorn")
    from component.search.guard import Access
    from component.search.server import make_app
    from component.search.serving import make_server

    running = []

    def start(**access) -> str:
        server, sock = make_server(make_app(searcher, Access(**access))), socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=[[sock]])
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{sock.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()
