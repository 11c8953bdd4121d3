"""A gallery of images: kept up to date, searched exactly, served to one person."""

import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import requests
import torch
from conftest import CAPTIONS, ENVIRONMENT, ROOT, run_python
from PIL import Image

from component.checkpoint import load_checkpoint, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.hub.identity import weights_digest
from component.search.export import export_gallery
from component.search.gallery import ROWS, VECTORS, Gallery
from component.search.index import update
from component.search.open import gallery_to_write, open_searcher
from component.search.query import Filter, Query


@pytest.fixture
def folder(data, tmp_path):
    """24 images that differ, in two folders; their gallery is not made yet."""
    folder = tmp_path / "photos"
    for number in range(24):
        place = folder / ("红" if number % 2 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture
def index(bert_clip_path, folder, tmp_path):
    def run(*sources, gallery="gallery", batch_size=5, **options):
        with gallery_to_write(str(tmp_path / gallery), bert_clip_path, "cpu") as opened:
            return update(*opened, [str(source) for source in sources or [folder]], batch_size=batch_size, **options)

    return run


@pytest.fixture
def searcher(index, tmp_path):
    index()
    return open_searcher(str(tmp_path / "gallery"), device="cpu")


def paths(gallery: Gallery) -> set[str]:
    return {image.path for image in gallery.images()}


# ---- the index ----


def test_what_has_not_changed_is_neither_read_nor_embedded(index, folder):
    assert index().added == 24
    for path in folder.rglob("*.png"):  # other bytes of the same size and time: nobody looks
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = index()
    assert (report.unchanged, report.added, report.bad_images) == (24, 0, {})


def test_new_changed_renamed_copied_touched_and_vanished_images(index, folder, tmp_path):
    index()
    Image.new("RGB", (30, 30), "red").save(folder / "new.png")
    Image.new("RGB", (30, 30), "blue").save(folder / "blue" / "0.png")
    os.rename(folder / "blue" / "2.png", folder / "红" / "renamed.png")
    shutil.copy(folder / "blue" / "4.png", folder / "copy.png")
    os.utime(folder / "blue" / "6.png", (1, 1))
    os.remove(folder / "blue" / "8.png")
    report = index()
    assert (report.added, report.moved, report.gone, report.unchanged) == (2, 3, 2, 20)
    gallery = Gallery(str(tmp_path / "gallery"))
    assert paths(gallery) == {str(path) for path in folder.rglob("*.png")}
    by_name = {os.path.basename(image.path): image for image in gallery.images()}
    vectors = gallery.vectors()
    assert (vectors[by_name["copy.png"].row] == vectors[by_name["4.png"].row]).all()


def test_an_image_that_comes_back_costs_nothing(index, folder, tmp_path):
    index()
    os.rename(folder / "红", tmp_path / "away")
    assert index().gone == 12
    os.rename(tmp_path / "away", folder / "红")
    report = index()
    assert (report.moved, report.added) == (12, 0)


@pytest.mark.parametrize("place", ["红", "elsewhere"])
def test_many_images_come_back_in_few_transactions(index, folder, tmp_path, bert_clip_path, place):
    index()
    os.rename(folder / "红", tmp_path / "away")
    index()
    os.rename(tmp_path / "away", folder / place)
    statements = []
    with gallery_to_write(str(tmp_path / "gallery"), bert_clip_path, "cpu") as (gallery, *model):
        gallery._rows.set_trace_callback(statements.append)
        assert update(gallery, *model, [str(folder)]).moved == 12
    assert statements.count("COMMIT") <= 4


@pytest.mark.parametrize("touched", [False, True])
def test_an_image_that_comes_back_beside_a_copy_costs_neither_its_row(index, folder, tmp_path, touched):
    index()
    first, copy = folder / "blue" / "2.png", folder / "blue" / "0-copy.png"
    os.rename(first, tmp_path / "away.png")
    index()
    os.rename(tmp_path / "away.png", first)
    shutil.copy(first, copy)
    os.utime(first, ns=(1, 1 if touched else first.stat().st_mtime_ns))
    report = index()
    assert (report.moved, report.added) == (2, 0)
    assert paths(Gallery(str(tmp_path / "gallery"))) == {str(path) for path in folder.rglob("*.png")}


def test_another_folder_leaves_the_first_alone(index, folder, data, tmp_path):
    index(folder / "blue")
    report = index(folder / "红")
    assert (report.gone, report.added) == (0, 12)


def test_a_folder_that_is_away_is_an_error_and_nothing_is_gone(index, folder, tmp_path):
    index()
    os.rename(folder, tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        index()
    assert Gallery(str(tmp_path / "gallery")).counts()["images"] == 24


def test_bad_images_are_named_and_not_tried_again_until_they_change(index, folder):
    (folder / "bad.png").write_text("no image")
    assert list(index().bad_images) == [str(folder / "bad.png")]
    report = index()
    assert (report.known_bad, report.bad_images) == (1, {})
    Image.new("RGB", (30, 30), "red").save(folder / "bad.png")
    assert index().added == 1


def test_tables_and_shards(index, data, tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as shard:
        for number in range(3):
            shard.write({"__key__": f"{number}", "png": (data / "images" / f"{number}.png").read_bytes(), "txt": "x"})
    assert index(data / "train.csv", tmp_path / "a.tar", image_path=str(data / "images")).added == 11
    gallery = Gallery(str(tmp_path / "gallery"))
    assert str(tmp_path / "a.tar" / "2.png") in paths(gallery)
    assert index(data / "train.csv", tmp_path / "a.tar", image_path=str(data / "images")).unchanged == 11


def test_the_vectors_are_those_of_the_model(searcher, bert_clip_path):
    images = list(searcher.gallery.images())
    model, processor = load_checkpoint(bert_clip_path)
    expected = embed_images(model, processor, [image.path for image in images]).embeds
    found = torch.from_numpy(searcher.gallery.vectors()).float()[[image.row for image in images]]
    assert (found - expected).abs().max() < 1e-3


def test_a_killed_index_loses_nothing_but_the_batch_in_flight(index, folder, tmp_path):
    moments = random.Random(0)
    vectors = tmp_path / "gallery" / VECTORS

    def size() -> int:
        return os.path.getsize(vectors) if vectors.exists() else -1

    for _ in range(20):
        before, child = size(), os.fork()
        if child == 0:
            index(batch_size=1)
            os._exit(0)
        ended = 0
        while size() <= before and not ended:
            ended = os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.01))
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if Gallery.is_made(str(tmp_path / "gallery")):
            Gallery(str(tmp_path / "gallery"))  # whole, at any moment
    assert index().added < 24  # not one kill took everything
    gallery = Gallery(str(tmp_path / "gallery"))
    assert paths(gallery) == {str(path) for path in folder.rglob("*.png")} and len(gallery) == 24
    assert os.path.getsize(tmp_path / "gallery" / VECTORS) == 24 * 2 * gallery.width


def test_two_processes_make_the_gallery_of_one(index, folder, bert_clip_path, tmp_path):
    done = run_python(
        "search_image.py", "index", "--model", bert_clip_path, "--images", folder, "--gallery", tmp_path / "two",
        "--batch_size", "4", "--device", "cpu", processes=2,
    )  # fmt: skip
    assert done.returncode == 0 and "24 added" in done.stdout, done.stderr
    index()
    one, two = (Gallery(str(tmp_path / name)) for name in ("gallery", "two"))
    rows = [{image.path: image.row for image in gallery.images()} for gallery in (one, two)]
    assert rows[0].keys() == rows[1].keys()
    for path, row in rows[0].items():
        assert np.abs(one.vectors()[row].astype(float) - two.vectors()[rows[1][path]]).max() < 1e-3


def test_another_models_gallery_is_refused(index, tmp_path, bert_clip_path):
    from component.model import BertCLIPModel
    from component.processor import load_processor, save_processor

    index()
    model = BertCLIPModel.from_pretrained(bert_clip_path)
    model.visual_projection.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    save_processor(load_processor(bert_clip_path), str(tmp_path / "other"))
    with (
        pytest.raises(ValueError, match="was made with another model"),
        gallery_to_write(str(tmp_path / "gallery"), str(tmp_path / "other")),
    ):
        pass
    with pytest.raises(ValueError, match="was made with another model"):
        open_searcher(str(tmp_path / "gallery"), str(tmp_path / "other"))


def test_a_gallery_of_the_last_version_still_answers_and_is_refused_to_other_weights(index, tmp_path, bert_clip_path):
    index()
    model, processor = load_checkpoint(bert_clip_path)
    recorded = weights_digest(model, processor.image_processor.to_dict())  # what it wrote
    with closing(sqlite3.connect(tmp_path / "gallery" / "rows.sqlite")) as rows, rows:
        rows.execute("UPDATE about SET value = ? WHERE key = 'fingerprint'", (json.dumps(recorded),))
    open_searcher(str(tmp_path / "gallery"))
    with torch.no_grad():
        model.visual_projection.weight[0, 0] *= -1
    save_checkpoint(model, processor, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="the weights or the image processor"):
        open_searcher(str(tmp_path / "gallery"), str(tmp_path / "other"))


def test_another_tokenizer_with_the_same_weights_is_refused(index, tmp_path, bert_clip_path):
    index()
    model, processor = load_checkpoint(bert_clip_path)
    processor.tokenizer.add_tokens(["小狗"])
    save_checkpoint(model, processor, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="(the tokenizer)"):
        open_searcher(str(tmp_path / "gallery"), str(tmp_path / "other"))


def test_the_second_of_two_writers_is_told(index, tmp_path, bert_clip_path):
    with gallery_to_write(str(tmp_path / "gallery"), bert_clip_path), pytest.raises(ValueError, match="another run"):
        index()


@pytest.mark.parametrize("name", [VECTORS, ROWS])
def test_a_gallery_file_that_was_cut_short_is_named(index, tmp_path, name):
    index()
    path = tmp_path / "gallery" / name
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=f"{name} (was cut short|is damaged)"):
        list(Gallery(str(tmp_path / "gallery")).images())


# ---- the search ----


def scores_of(searcher, query: torch.Tensor) -> dict[str, float]:
    vectors = torch.from_numpy(searcher.gallery.vectors()).float()
    return {image.path: float(vectors[image.row] @ query) for image in searcher.gallery.images()}


@pytest.mark.parametrize("top_k", [1, 5, 24, 100])
def test_the_search_is_exact(searcher, top_k):
    query = searcher.embed(Query(texts=["红色的圆"]))
    expected = sorted(scores_of(searcher, query).items(), key=lambda entry: -entry[1])[:top_k]
    hits = searcher.search(query, top_k)
    assert [hit.image.path for hit in hits] == [path for path, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_texts_images_and_minus_add_up(searcher, folder):
    image = str(folder / "blue" / "0.png")
    red, blue, picture = (searcher.embed(q) for q in (Query(texts=["红"]), Query(texts=["蓝"]), Query(images=[image])))
    both = searcher.embed(Query(texts=["红"], images=[image], image_weight=0.25, minus=["蓝"], minus_weight=0.5))
    assert both.tolist() == pytest.approx((0.75 * red + 0.25 * picture - 0.5 * blue).tolist(), abs=1e-6)
    row = searcher.search(picture, 1)[0].image.row
    assert searcher.embed(Query(like=[row])).tolist() == pytest.approx(picture.tolist(), abs=1e-3)


def test_an_image_is_most_like_itself(searcher, folder):
    image = str(folder / "红" / "7.png")
    hit = searcher.search(searcher.embed(Query(images=[image])), 1)[0]
    assert hit.image.path == image and hit.score == pytest.approx(1, abs=1e-3)


def test_filters_by_folder_date_and_score(searcher, folder):
    query = searcher.embed(Query(texts=["红色的圆"]))
    os.utime(folder / "blue" / "0.png", (86_400, 86_400))
    found = {hit.image.path for hit in searcher.search(query, 100, Filter(folder=str(folder / "红")))}
    assert found == {str(path) for path in (folder / "红").iterdir()}
    scores = scores_of(searcher, query)
    middle = sorted(scores.values())[12]
    found = {hit.image.path for hit in searcher.search(query, 100, Filter(threshold=middle))}
    assert found == {path for path, score in scores.items() if score >= middle}
    assert searcher.search(query, 100, Filter(until=1.0)) == []
    assert len(searcher.search(query, 100, Filter(since=1.0))) == 24


def test_what_another_process_adds_and_deletes_is_seen(searcher, index, folder):
    query = searcher.embed(Query(texts=["红色的圆"]))
    Image.new("RGB", (30, 30), "red").save(folder / "new.png")
    gone = folder / "blue" / "0.png"
    os.remove(gone)
    index()
    found = {hit.image.path for hit in searcher.search(query, 100)}
    assert str(folder / "new.png") in found and str(gone) not in found and len(found) == 24


def test_near_duplicates_are_folded_into_the_best(index, folder, tmp_path):
    shutil.copy(folder / "blue" / "0.png", folder / "copy.png")
    index()
    searcher = open_searcher(str(tmp_path / "gallery"), device="cpu")
    hits = searcher.search(searcher.embed(Query(images=[str(folder / "copy.png")])), 100, Filter(fold=0.9995))
    told = [hit.image.path for hit in hits] + [image.path for hit in hits for image in hit.duplicates]
    assert sorted(told) == sorted(map(str, folder.rglob("*.png")))
    twins = {str(folder / "copy.png"), str(folder / "blue" / "0.png")}
    assert {hits[0].image.path, *(image.path for image in hits[0].duplicates)} >= twins


def test_the_place_among_random_texts(searcher, bert_clip_path):
    from component.prompts import RANDOM_TEXTS

    query = searcher.embed(Query(texts=["红色的圆"]))
    hit = searcher.search(query, 1)[0]
    model, processor = load_checkpoint(bert_clip_path)
    vector = torch.from_numpy(searcher.gallery.vectors()).float()[hit.image.row]
    others = embed_texts(model, processor, RANDOM_TEXTS).embeds @ vector
    assert hit.place == pytest.approx((others < hit.score).float().mean().item(), abs=0.01)


def test_an_empty_query_and_an_unknown_row_are_refused(searcher):
    with pytest.raises(ValueError, match="empty"):
        searcher.embed(Query())
    with pytest.raises(ValueError, match="no image with the number 99"):
        searcher.embed(Query(like=[99]))


def test_the_faiss_index_finds_the_same(searcher, tmp_path):
    pytest.importorskip("faiss")
    query = searcher.embed(Query(texts=["红色的圆"]))
    approximate = open_searcher(str(tmp_path / "gallery"), device="cpu", approximate=True)
    assert approximate.approximate.recall > 0.9
    assert approximate.search(query, 3)[0].image == searcher.search(query, 3)[0].image


# ---- export, and the script ----


def test_exported_vectors_are_those_of_the_gallery(searcher, tmp_path):
    import pyarrow.parquet

    assert export_gallery(searcher.gallery, str(tmp_path / "v.parquet"), "parquet") == 24
    assert export_gallery(searcher.gallery, str(tmp_path / "v.npy"), "npy") == 24
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pydict()
    vectors = np.load(tmp_path / "v.npy")
    names = (tmp_path / "v.txt").read_text(encoding="utf-8").splitlines()
    assert table["path"] == names == [image.path for image in searcher.gallery.images()]
    assert np.abs(np.array(table["vector"]) - vectors).max() == 0 and vectors.shape == (24, searcher.gallery.width)


def test_the_script_from_index_to_query(folder, bert_clip_path, tmp_path):
    gallery = ["--gallery", tmp_path / "gallery", "--device", "cpu"]
    (folder / "bad.png").write_text("no image")
    done = run_python("search_image.py", "index", "--model", bert_clip_path, "--images", folder, *gallery)
    assert done.returncode == 0 and "24 added, 1 cannot be read" in done.stdout, done.stderr
    assert "bad.png" in (tmp_path / "gallery" / "bad_images.csv").read_text()
    outputs = ["--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    options = [*gallery, "--text", "红", "蓝", "--top_k", "3", *outputs]
    done = run_python("-X", "importtime", "search_image.py", "query", *options)
    assert done.returncode == 0 and "| pandas" not in re.sub(" +", " ", done.stderr), done.stderr
    answers = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert list(answers) == ["红", "蓝"] and all(len(hits) == 3 for hits in answers.values())
    assert answers["红"][0]["path"][-20:] in done.stdout
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("data:image/jpeg") == 6


def test_no_gallery_is_one_line(tmp_path):
    done = run_python("search_image.py", "query", "--gallery", tmp_path, "--text", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is no gallery" in done.stderr


# ---- the server ----


@pytest.fixture
def server(searcher, tmp_path):
    """The address of a real server, and a function that serves with other options."""
    uvicorn = pytest.importorskip("uvicorn")
    from component.search.server import make_app

    running = []

    def serve(**options) -> str:
        app = make_app(searcher, str(tmp_path / "thumbnails"), **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


def ask(address: str, route: str, options: dict, image: bytes = b"") -> requests.Response:
    return requests.post(f"{address}/api/{route}", data=json.dumps(options).encode() + b"\n" + image)


def test_search_classification_and_images_over_http(server, folder, searcher):
    address = server()
    content = (folder / "blue" / "0.png").read_bytes()
    hits = ask(address, "search", {"top_k": 3}, content).json()["hits"]
    assert hits[0]["path"] == str(folder / "blue" / "0.png") and len(hits) == 3
    small, whole = (requests.get(f"{address}/{kind}/{hits[0]['row']}") for kind in ("thumbnail", "image"))
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


@pytest.mark.slow
def test_the_cluster_recipe_embeds_a_shard(data, bert_clip_path, tmp_path):
    pytest.importorskip("ray")
    import pyarrow.parquet
    import webdataset

    page = (pathlib.Path(ROOT) / "docs" / "search.md").read_text(encoding="utf-8")
    (recipe,) = (block for block in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "import ray" in block)
    (tmp_path / "recipe.py").write_text(recipe, encoding="utf-8")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as shard:
        for number in range(8):
            image = Image.open(data / "images" / f"{number}.png")
            shard.write({"__key__": f"{number}", "jpg": encoded(image, "JPEG"), "txt": "x"})
    arguments = [tmp_path / "a.tar", bert_clip_path, tmp_path / "vectors"]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, tmp_path / "recipe.py", *arguments], check=True, env=environment, timeout=300)
    found = pyarrow.parquet.read_table(tmp_path / "vectors").to_pydict()
    model, processor = load_checkpoint(bert_clip_path)
    images = [Image.open(data / "images" / f"{key}.png") for key in found["key"]]
    images = [Image.open(io.BytesIO(encoded(image, "JPEG"))) for image in images]
    expected = embed_images(model, processor, images).embeds
    assert len(images) == 8 and np.abs(np.array(found["vector"]) - expected.numpy()).max() < 1e-5
