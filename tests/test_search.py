"""A gallery of images: kept up to date, searched exactly, exported."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, run_python, write_csv
from PIL import Image

import search_image
from component.checkpoint import load_checkpoint, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.gallery.reader import ROWS, VECTORS, Gallery, is_gallery
from component.gallery.rows import ImageFile
from component.ground.file_state import FileState
from component.hub.identity import weights_digest
from component.image.reading import BadImageError
from component.report.search import index_summary
from component.search.approximate import APPROXIMATE_INDEX, open_index
from component.search.embed import Loading
from component.search.export import export_gallery
from component.search.index import update
from component.search.open import gallery_to_write, open_searcher
from component.search.presence import absence_threshold
from component.search.query import Filter, Query
from component.search.quick import open_text_searcher
from component.search.scan import Sources
from component.search.searcher import Searcher
from component.search.thumbnails import original, thumbnail
from component.search.writer import GalleryWriter
from component.shorten import principal_axes, shorten

pytest_plugins = ["galleries"]


def paths(gallery: Gallery) -> set[str]:
    return {image.path for image in gallery.images()}


# ---- the index ----

opened: set[str] | None = None
sys.addaudithook(lambda event, args: opened.add(args[0]) if event == "open" and opened is not None else None)


def test_unchanged_images_are_not_opened(index, folder):
    global opened
    index()
    opened = set()
    report, opened_paths, opened = index(), opened, None
    assert (report.unchanged, report.added) == (24, 0) and not any(str(folder) in str(path) for path in opened_paths)


def test_new_changed_renamed_copied_touched_and_deleted_images(index, folder, tmp_path):
    index()
    Image.new("RGB", (30, 30), "red").save(folder / "new.png")
    Image.new("RGB", (30, 30), "blue").save(folder / "blue" / "0.png")
    os.rename(folder / "blue" / "2.png", folder / "红" / "renamed.png")
    shutil.copy(folder / "blue" / "4.png", folder / "copy.png")
    os.utime(folder / "blue" / "6.png", (1, 1))
    os.remove(folder / "blue" / "8.png")
    report = index()
    assert (report.added, report.moved, report.copies, report.deleted, report.unchanged) == (2, 2, 1, 1, 20)
    gallery = Gallery(str(tmp_path / "gallery"))
    assert paths(gallery) == {str(path) for path in folder.rglob("*.png")}
    by_name = {os.path.basename(image.path): image for image in gallery.images()}
    vectors = gallery.vectors()
    assert (vectors[by_name["copy.png"].row] == vectors[by_name["4.png"].row]).all()


def test_images_swapped_with_their_size_and_time_kept_swap_their_vectors(index, folder, tmp_path):
    first, second = folder / "blue" / "0.png", folder / "blue" / "2.png"
    size = max(first.stat().st_size, second.stat().st_size)
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1, 1))
    index()

    def vectors() -> list[list[float]]:
        gallery = Gallery(str(tmp_path / "gallery"))
        rows = {image.path: image.row for image in gallery.images()}
        return [gallery.vectors()[rows[str(path)]].tolist() for path in (first, second)]

    before = vectors()
    os.rename(first, tmp_path / "between")
    os.rename(second, first)
    os.rename(tmp_path / "between", second)
    index()
    assert vectors() == before[::-1] != before


@pytest.mark.parametrize("back", ["红", "elsewhere"])
def test_many_images_come_back_at_no_cost_and_in_few_transactions(index, folder, tmp_path, back):
    def num_transactions() -> int:  # SQLite counts them in the header of its file
        return int.from_bytes((tmp_path / "gallery" / ROWS).read_bytes()[24:28], "big")

    index()
    os.rename(folder / "红", tmp_path / "away")
    index()
    os.rename(tmp_path / "away", folder / back)
    before = num_transactions()
    report = index()
    assert report.added == 0 and num_transactions() <= before + 6
    assert paths(Gallery(str(tmp_path / "gallery"))) == {str(path) for path in folder.rglob("*.png")}


@pytest.mark.parametrize("touched", [False, True])
def test_an_image_that_comes_back_next_to_a_copy_costs_neither_its_row(index, folder, tmp_path, touched):
    index()
    first, copy = folder / "blue" / "2.png", folder / "blue" / "0-copy.png"
    os.rename(first, tmp_path / "away.png")
    index()
    os.rename(tmp_path / "away.png", first)
    shutil.copy(first, copy)
    os.utime(first, ns=(1, 1 if touched else first.stat().st_mtime_ns))
    report = index()
    assert (report.moved + report.copies, report.added) == (2, 0)
    assert paths(Gallery(str(tmp_path / "gallery"))) == {str(path) for path in folder.rglob("*.png")}


def test_another_folder_leaves_the_first_alone(index, folder, tmp_path):
    index(folder / "blue")
    os.rename(folder / "blue", tmp_path / "away")
    report = index(folder / "红")
    assert (report.deleted, report.absent, report.added) == (0, 0, 12)
    assert Gallery(str(tmp_path / "gallery")).counts() == {"images": 24, "absent": 0, "bad_images": 0}


def away_missing(folder, tmp_path):
    os.rename(folder, tmp_path / "away")


def away_empty(folder, tmp_path):
    os.rename(folder, tmp_path / "away")
    folder.mkdir()


def away_mount_point(folder, tmp_path):
    os.rename(folder / "红", tmp_path / "away")
    (folder / "红").mkdir()


def away_much(folder, tmp_path):
    os.rename(folder / "红", tmp_path / "away")


@pytest.mark.parametrize("take_away", [away_missing, away_empty, away_mount_point, away_much])
def test_images_whose_disk_may_be_away_stay_until_they_are_back_or_forgotten(index, folder, tmp_path, take_away):
    index()
    take_away(folder, tmp_path)
    report = index()
    counts = Gallery(str(tmp_path / "gallery")).counts()
    assert report.deleted == 0 and counts["images"] == 24 and counts["absent"] == report.absent in (12, 24)
    assert "--forget FOLDER" in index_summary(report, Gallery(str(tmp_path / "gallery")))
    shutil.copytree(tmp_path / "away", folder / "红" if report.absent == 12 else folder, dirs_exist_ok=True)
    report = index()
    assert report.added == 0 and Gallery(str(tmp_path / "gallery")).counts()["absent"] == 0


def test_a_source_that_the_gallery_does_not_know_must_be_there(index, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file"):
        index(tmp_path / "nowhere")


def test_forgetting_a_folder_leaves_nothing_of_it_in_the_gallery(
    index, folder, tmp_path, searcher, monkeypatch, capsys
):
    gallery, name = tmp_path / "gallery", str(folder / "红").encode()
    forgotten = [image for image in searcher.gallery.images() if "红" in image.path]
    vectors = [searcher.gallery.vectors()[image.row].tobytes() for image in forgotten]
    for image in searcher.gallery.images():
        thumbnail(image, str(gallery))
    monkeypatch.setattr(sys, "argv", ["", "index", "--gallery", str(gallery), "--forget", str(folder / "红")])
    assert search_image.main() == 0 and capsys.readouterr().out.startswith("12 images")
    left = b"".join(path.read_bytes() for path in gallery.rglob("*") if path.is_file())
    assert name not in left and not any(vector in left for vector in vectors)
    assert len(list(gallery.rglob("*.jpg"))) == 12
    hits = searcher.search(searcher.embed(Query(texts=["红色的圆"])), 100)  # opened before
    assert {hit.image.path for hit in hits} == set(map(str, (folder / "blue").iterdir()))
    assert index().added == 12


def test_forgetting_a_shard_leaves_nothing_of_it_in_the_gallery(index, data, tmp_path):
    shard = write_shard(tmp_path / "secret.tar", [0, 1, 2], data)
    index(data / "train.csv", shard, image_path=str(data / "images"))
    with closing(GalleryWriter(str(tmp_path / "gallery"))) as gallery:
        assert gallery.forget(str(shard)) == 3
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "gallery").iterdir())


@pytest.mark.parametrize(
    "options", [[], ["--model", "a"], ["--forget", ""], ["--model", "a", "--images", "b", "--forget", "b"]]
)
def test_index_either_updates_or_forgets(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "index", "--gallery", str(tmp_path), *options])
    with pytest.raises(SystemExit):
        search_image.main()
    assert "give --model and --images, or --forget FOLDER alone" in capsys.readouterr().err


def test_a_gallery_is_not_made_among_other_files(index, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="photos is not a gallery, and holds other files, such as blue"):
        index(gallery="photos")
    assert sorted(folder.rglob("*")) == before


def test_one_unreadable_item_never_stops_the_rest(index, folder, tmp_path, monkeypatch):
    broken = str(folder / "blue" / "4.png")
    index(folder / "红")
    real_open, real_scandir = os.open, os.scandir  # the tests may run as root, who may read everything

    def refuse(path, *args, **options):
        if os.fspath(path) in (broken, str(folder / "红")):
            raise OSError(5, "Input/output error", path)
        return (real_open if args or options else real_scandir)(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    report = index()
    assert set(report.unreadable) == {broken, str(folder / "红")} and (report.added, report.deleted) == (11, 0)
    monkeypatch.undo()
    assert index().added == 1 and len(paths(Gallery(str(tmp_path / "gallery")))) == 24


def test_a_folder_without_images_is_named_as_such(index, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("a")
    report = index(tmp_path / "empty")
    assert "no image was found" in index_summary(report, Gallery(str(tmp_path / "gallery")))


def test_skipped_files_are_counted(index, folder, caplog):
    image = folder / "blue" / "0.png"
    for name in ("a.HEIC", "b.jxl", "@eaDir/c.png", ".Trash-1000/c.png", "#recycle/c.png", "lost+found/c.png",
                 "raw/c.png", "d.tmp.png", ".hidden/c.png"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, folder / name)
    os.symlink(folder / "blue", folder / "link")
    index(gallery="photos/inside", exclude=["raw", "*.tmp.png"])
    searcher = open_searcher(str(folder / "inside"), device="cpu")
    for hit in searcher.gallery.images():
        thumbnail(hit, searcher.gallery.folder)
    report = index(gallery="photos/inside", exclude=["raw", "*.tmp.png"])
    assert (report.unchanged, report.added) == (24, 0)
    assert report.passed_over == {
        "folders @eaDir": 1, "folders .Trash*": 1, "folders #recycle": 1,
        "folders lost+found": 1, "folders raw": 1, "files *.tmp.png": 1, "hidden folders": 1, "galleries": 1,
        "symbolic links to folders": 1,
    }  # fmt: skip
    assert "1 folders @eaDir" in index_summary(report, searcher.gallery)
    assert "1 .heic, 1 .jxl" in caplog.text


def test_captions_and_dates_are_kept_with_the_image(index, data, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    Image.open(data / "images" / "0.png").save(data / "images" / "0.jpg", exif=exif)
    table = data / "train.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("0.png,0.png", "0.png,0.jpg"), encoding="utf-8")
    index(table, image_path=str(data / "images"))
    gallery = Gallery(str(tmp_path / "gallery"))
    assert [image.file.caption for image in gallery.images()] == CAPTIONS
    year_2001 = time.mktime((2001, 1, 1, 0, 0, 0, 0, 0, -1)), time.mktime((2002, 1, 1, 0, 0, 0, 0, 0, -1))
    assert gallery.rows_where(since=year_2001[0], until=year_2001[1]).tolist() == [True] + 7 * [False]
    table.write_text(table.read_text(encoding="utf-8").replace("小狗", "大狗"), encoding="utf-8")
    assert index(table, image_path=str(data / "images")).unchanged == 8
    assert Gallery(str(tmp_path / "gallery")).image(0).file.caption == "一只大狗在摇尾巴"


def test_bad_images_are_named_and_not_tried_again_until_they_change(index, folder):
    (folder / "bad.png").write_text("no image")
    assert list(index().bad_images) == [str(folder / "bad.png")]
    report = index()
    assert (report.known_bad, report.bad_images) == (1, {})
    Image.new("RGB", (30, 30), "red").save(folder / "bad.png")
    assert index().added == 1


def write_shard(path, numbers, data):
    import webdataset

    with webdataset.TarWriter(str(path)) as shard:
        for number in numbers:
            shard.write({"__key__": f"{number}", "png": (data / "images" / f"{number}.png").read_bytes(), "txt": "x"})
    return path


def test_images_that_overflow_in_half_precision_are_tried_again(folder, tmp_path, bert_clip_path):
    model, processor = load_checkpoint(bert_clip_path)
    model.visual_projection.weight.data *= 1e6
    save_checkpoint(model, processor, str(tmp_path / "large"))
    for precision, added in (("fp16", 0), ("fp32", 24)):
        with gallery_to_write(str(tmp_path / "gallery"), str(tmp_path / "large"), "cpu", precision) as opened:
            report = update(*opened, Sources([str(folder)]), Loading(5, 0))
        assert (report.added, len(report.unreadable), report.known_bad) == (added, 24 - added, 0)


def test_tables_and_shards(index, data, tmp_path):
    write_shard(tmp_path / "a.tar", range(3), data)
    assert index(data / "train.csv", tmp_path / "a.tar", image_path=str(data / "images")).added == 11
    gallery = Gallery(str(tmp_path / "gallery"))
    assert str(tmp_path / "a.tar" / "2.png") in paths(gallery)
    assert index(data / "train.csv", tmp_path / "a.tar", image_path=str(data / "images")).unchanged == 11


def test_files_that_a_table_names_in_vain_are_counted(index, data, tmp_path):
    rows = [("0.png", "x"), ("gone.png", "x"), ("gone.png", "y"), ("../out.png", "x")]
    table = write_csv(tmp_path / "a.csv", rows, header=("filename", "text"))
    report = index(table, image_path=str(data / "images"))
    assert report.added == 1 and report.passed_over == {"files named by tables, but missing": 2}


def test_a_missing_image_path_is_named_unless_its_images_are_known(index, data, tmp_path):
    folder, away = data / "images", tmp_path / "away"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file"):
        index(data / "train.csv", image_path=str(tmp_path / "nowhere"))
    assert index(data / "train.csv", image_path=str(folder)).added == 8
    os.rename(folder, away)
    report = index(data / "train.csv", image_path=str(folder))
    os.rename(away, folder)
    assert (report.absent, report.deleted) == (8, 0)
    report = index(data / "train.csv", image_path=str(folder))
    assert (report.added, Gallery(str(tmp_path / "gallery")).counts()["absent"]) == (0, 0)


def test_the_columns_of_a_table_may_have_other_names(index, data, tmp_path):
    rows = [(f"{number}.png", "words") for number in range(3)]
    table = write_csv(tmp_path / "a.csv", rows, header=("file", "what"))
    with pytest.raises(ValueError, match="--columns"):
        index(table, image_path=str(data / "images"))
    assert index(table, image_path=str(data / "images"), columns={"filename": "file", "text": "what"}).added == 3
    images = list(Gallery(str(tmp_path / "gallery")).images())
    assert {image.path for image in images} == {str(data / "images" / name) for name, _ in rows}
    assert {image.file.caption for image in images} == {"words"}


def test_images_inside_a_parquet_table_are_indexed(index, data, tmp_path):
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    contents = [(data / "images" / f"{number}.png").read_bytes() for number in range(5)] + [None]
    captions = [f"caption {number}" for number in range(6)]
    pyarrow.parquet.write_table(pyarrow.table({"text": captions, "image": contents}), path, row_group_size=2)
    report = index(path)
    assert (report.added, report.bad_images) == (5, {f"{path}/2/1": "the row has no image"})
    images = {image.path: image for image in Gallery(str(tmp_path / "gallery")).images()}
    third = images[f"{path}/1/0"]
    assert original(third) == contents[2] and third.file.caption == "caption 2"
    assert index(path).unchanged == 5
    pyarrow.parquet.write_table(pyarrow.table({"text": captions[:3], "image": contents[:3]}), path)
    with pytest.raises(BadImageError, match="changed"):
        original(third)
    report = index(path)
    assert (report.added, len(paths(Gallery(str(tmp_path / "gallery"))))) == (3, 3)


def test_the_vectors_are_those_of_the_model(searcher, bert_clip_path):
    images = list(searcher.gallery.images())
    model, processor = load_checkpoint(bert_clip_path)
    expected = embed_images(model, processor, [image.path for image in images]).embeds
    found = torch.from_numpy(searcher.gallery.vectors()).float()[[image.row for image in images]]
    assert (found - expected).abs().max() < 1e-3


def test_a_killed_index_loses_only_the_batch_in_flight(index, folder, tmp_path):
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
        if is_gallery(str(tmp_path / "gallery")):
            Gallery(str(tmp_path / "gallery"))  # whole, at any moment
    assert index().added < 24  # not one kill took everything
    gallery = Gallery(str(tmp_path / "gallery"))
    assert paths(gallery) == {str(path) for path in folder.rglob("*.png")} and gallery.num_rows() == 24
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


def test_the_gallery_of_another_model_is_refused(index, tmp_path, bert_clip_path):
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


def with_another_text_half(bert_clip_path, folder) -> str:
    """A model with the same image half, as training with freeze_visual_projection makes it."""
    model, processor = load_checkpoint(bert_clip_path)
    with torch.no_grad():
        model.text_projection.weight.neg_()
    processor.tokenizer.model_max_length = 7
    save_checkpoint(model, processor, str(folder))
    return str(folder)


def test_another_text_half_searches_the_old_gallery_and_says_so(index, tmp_path, bert_clip_path):
    index()
    other, gallery = with_another_text_half(bert_clip_path, tmp_path / "other"), tmp_path / "gallery"
    GalleryWriter(str(gallery)).note(absence_threshold=0.0)
    before, after = open_searcher(str(gallery)), open_searcher(str(gallery), other)
    ask = ["query", "--gallery", gallery, "--text", "红色的圆", "--json", tmp_path / "answers.json", "--device", "cpu"]
    done = run_python("search_image.py", *ask, "--model", other)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0 and "another text half (the weights of the text half; model_max_length" in line
    (answer,) = json.loads((tmp_path / "answers.json").read_text()).values()
    rows = after.gallery.vectors().astype(np.float32) @ after.embed(Query(["红色的圆"]))
    assert [hit["id"] for hit in answer["hits"]] == list(rows.argsort()[::-1][:10])
    assert before.answer(Query(["红色的圆"])).probably_absent
    assert answer["probably_absent"] is None  # the threshold was measured with the texts of the former model


def test_indexing_with_another_text_half_keeps_the_vectors_and_takes_its_texts(
    index, folder, tmp_path, bert_clip_path, caplog
):
    index()
    path = str(tmp_path / "gallery")
    GalleryWriter(path).note(absence_threshold=0.0)
    vectors, about = Gallery(path).vectors().tobytes(), Gallery(path).about
    before = open_searcher(path)
    assert before.answer(Query(["红色的圆"])).probably_absent
    other = with_another_text_half(bert_clip_path, tmp_path / "other")
    with gallery_to_write(path, other, "cpu") as opened:
        report = update(*opened, Sources([str(folder)]), Loading(5, 0))
    assert report.unchanged == 24 and report.added == 0 and "belongs to this model from now on" in caplog.text
    now = Gallery(path)
    assert now.vectors().tobytes() == vectors and now.about["model"] == other
    assert now.about["absence_threshold"] is None  # measured again: these images are too much alike to judge
    assert now.about["random_texts"] != about["random_texts"]
    GalleryWriter(path).note(absence_threshold=0.0)
    assert before.answer(Query(["红色的圆"])).probably_absent is None  # the threshold of the other model
    caplog.clear()
    open_searcher(path)
    assert not caplog.text


def test_an_image_half_that_is_kept_in_fp32_with_the_values_of_fp16_is_the_same(folder, tmp_path, bert_clip_path):
    model, processor = load_checkpoint(bert_clip_path)
    save_checkpoint(model.half(), processor, str(tmp_path / "half"))
    save_checkpoint(model.float(), processor, str(tmp_path / "single"))
    with gallery_to_write(str(tmp_path / "gallery"), str(tmp_path / "half"), "cpu"):
        pass
    open_searcher(str(tmp_path / "gallery"), str(tmp_path / "single"))
    with pytest.raises(ValueError, match="the weights of the image half"):
        open_searcher(str(tmp_path / "gallery"), bert_clip_path)


def test_a_gallery_may_keep_the_first_dimensions_of_an_ordered_model(
    index, folder, tmp_path, bert_clip_path, monkeypatch
):
    model, processor = load_checkpoint(bert_clip_path)
    images = embed_images(model, processor, sorted(map(str, folder.rglob("*.png"))))
    shorten(model, principal_axes(images.embeds))
    ordered, short, query = str(tmp_path / "ordered"), str(tmp_path / "short"), Query(["红色的圆"], minus=["花"])
    save_checkpoint(model, processor, ordered)

    def index_it(gallery: str, dim: int | None, path: str = ordered):
        with gallery_to_write(gallery, path, "cpu", dim=dim) as opened:
            return update(*opened, Sources([str(folder)]), Loading(5, 0))

    for gallery, dim in ((str(tmp_path / "whole"), None), (short, 4)):
        assert index_it(gallery, dim).added == 24
    assert index_it(short, None).unchanged == 24
    whole = Gallery(str(tmp_path / "whole")).vectors()[:, :4].astype(np.float32)
    np.testing.assert_allclose(
        Gallery(short).vectors(), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=2e-3
    )
    texts = embed_texts(model, processor, [*query.texts, *query.minus]).embeds[:, :4].numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    rows = (Gallery(short).vectors().astype(np.float32) @ (texts[0] - 0.5 * texts[1])).argsort()[::-1]
    for searcher in (open_searcher(short, device="cpu"), open_text_searcher(short)):
        assert [hit.image.row for hit in searcher.answer(query).hits] == rows[:10].tolist()
    assert open_searcher(short, device="cpu").answer(Query(images=images.items[:1])).hits[0].score > 0.999
    for gallery, dim, path, reason in (
        (short, 5, ordered, "holds vectors of 4 dimensions, not 5"),
        (str(tmp_path / "new"), 17, ordered, "has vectors of 16 dimensions: give --dim 1 to 16, not 17"),
        (str(tmp_path / "new"), 4, bert_clip_path, "in no order, .* Order them with export_model.py"),
    ):
        with pytest.raises(ValueError, match=reason):
            index_it(gallery, dim, path)


def test_the_second_of_two_writers_gets_an_error(index, tmp_path, bert_clip_path):
    with gallery_to_write(str(tmp_path / "gallery"), bert_clip_path), pytest.raises(ValueError, match="another run"):
        index()


@pytest.mark.parametrize("name", [VECTORS, ROWS])
def test_a_gallery_file_that_was_cut_short_is_named(index, tmp_path, name):
    index()
    path = tmp_path / "gallery" / name
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=f"{name} (was cut short|is damaged)"):
        list(Gallery(str(tmp_path / "gallery")).images())


@pytest.mark.parametrize("content", [None, b""])
def test_half_a_gallery_is_named_and_left_as_it_is(index, tmp_path, content):
    index()
    gallery = tmp_path / "gallery"
    os.remove(gallery / ROWS)
    if content is not None:
        (gallery / ROWS).write_bytes(content)
    before = (gallery / VECTORS).read_bytes()
    with pytest.raises(ValueError, match="half a gallery"):
        index()
    assert (gallery / VECTORS).read_bytes() == before


def test_a_locked_gallery_is_not_called_damaged(index, tmp_path):
    index()
    other = sqlite3.connect(tmp_path / "gallery" / ROWS)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match="database is locked"):
        Gallery(str(tmp_path / "gallery"), patience=0.1)


def test_readers_see_a_snapshot_while_a_writer_continues(index, folder, tmp_path, searcher):
    gallery = Gallery(str(tmp_path / "gallery"))
    with gallery.snapshot():
        before = gallery.counts()
        os.remove(folder / "blue" / "0.png")
        writer = threading.Thread(target=index)
        writer.start()
        writer.join(timeout=0.5)
        assert gallery.counts() == before and len(list(gallery.images())) == gallery.rows_where().sum() == 24
    writer.join()
    assert gallery.counts()["images"] == 23


# ---- the search ----


def scores_of(searcher, query: np.ndarray) -> dict[str, float]:
    vectors = searcher.gallery.vectors().astype(np.float32)
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
    red, blue, photo = (searcher.embed(q) for q in (Query(texts=["红"]), Query(texts=["蓝"]), Query(images=[image])))
    both = searcher.embed(Query(texts=["红"], images=[image], image_weight=0.25, minus=["蓝"]))
    assert both.tolist() == pytest.approx((0.75 * red + 0.25 * photo - 0.5 * blue).tolist(), abs=1e-6)
    row = searcher.search(photo, 1)[0].image.row
    assert searcher.embed(Query(like=[row])).tolist() == pytest.approx(photo.tolist(), abs=1e-3)


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


def test_additions_and_deletions_by_another_process_are_seen(searcher, index, folder):
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
    found = [hit.image.path for hit in hits] + [image.path for hit in hits for image in hit.duplicates]
    assert sorted(found) == sorted(map(str, folder.rglob("*.png")))
    twins = {str(folder / "copy.png"), str(folder / "blue" / "0.png")}
    assert {hits[0].image.path, *(image.path for image in hits[0].duplicates)} >= twins


def test_an_empty_query_and_an_unknown_row_are_refused(searcher):
    with pytest.raises(ValueError, match="empty"):
        searcher.embed(Query())
    with pytest.raises(ValueError, match="no image with the id 99"):
        searcher.embed(Query(like=[99]))


@pytest.fixture
def approximate(searcher, tmp_path, monkeypatch):
    """A searcher that takes its candidates from the faiss index, though the gallery is small."""
    pytest.importorskip("faiss")
    monkeypatch.setattr("component.search.approximate.MAX_EXACT_ROWS", 0)
    return open_searcher(str(tmp_path / "gallery"), device="cpu", approximate=True)


def test_the_faiss_index_finds_what_the_exact_search_finds(searcher, approximate, folder):
    query = searcher.embed(Query(texts=["红色的圆"]))
    assert approximate.approximate.recall >= 0.95
    for where in (Filter(), Filter(folder=str(folder / "红")), Filter(until=1.0)):
        assert approximate.search(query, 10, where) == searcher.search(query, 10, where)


def gallery_of(folder, vectors: torch.Tensor, texts: torch.Tensor) -> GalleryWriter:
    """A gallery without a model: these vectors are its images, these its random texts."""
    gallery = GalleryWriter.create(str(folder), vectors.shape[1], random_texts=texts.tolist(), fingerprint="")
    add_vectors(gallery, vectors)
    return gallery


def add_vectors(gallery: GalleryWriter, vectors: torch.Tensor) -> None:
    rows = range(gallery.num_rows(), gallery.num_rows() + len(vectors))
    files = [ImageFile(f"/{row}.png", FileState(row, 1, 1, 1)) for row in rows]
    gallery.add(files, [row.to_bytes(16, "big") for row in rows], [None] * len(files), vectors.numpy())


def random_vectors(number: int, width: int, seed: int) -> torch.Tensor:
    vectors = torch.from_numpy(np.random.default_rng(seed).normal(size=(number, width))).float()
    return torch.nn.functional.normalize(vectors, dim=1)


def test_probes_are_raised_until_the_recall_holds(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    vectors, texts = random_vectors(5000, 32, 0), random_vectors(50, 32, 1)
    gallery = gallery_of(tmp_path, vectors, texts)
    index = open_index(gallery)
    assert 8 < index.probes and index.recall >= 0.95
    probes = index.probes
    add_vectors(gallery, random_vectors(5000, 32, 2))  # a writer may do so while the index is built
    index.measure(gallery)
    assert index.probes == probes
    narrow = np.arange(5000) < 300
    for exact_rows in (0, 50_000):
        monkeypatch.setattr("component.search.approximate.MAX_EXACT_ROWS", exact_rows)
        found = [set(index.search(text, 20, narrow).tolist()) for text in texts.numpy()]
        best = (texts @ vectors[:300].T).topk(10).indices.tolist()
        assert all(rows <= set(range(300)) and len(rows) >= 20 for rows in found)
        assert np.mean([len(a & set(b)) for a, b in zip(found, best, strict=True)]) >= 9.5


def test_a_text_without_an_image_is_distinguished_from_one_with_an_image(tmp_path):
    vectors, texts = random_vectors(2000, 64, 0), random_vectors(200, 64, 1)
    gallery = gallery_of(tmp_path, vectors, texts)
    assert absence_threshold(gallery_of(tmp_path / "few", vectors[:10], texts)) is None
    gallery.note(absence_threshold=absence_threshold(gallery))
    asked = []
    searcher = Searcher(gallery, towers=None)
    searcher.embed = lambda query: asked.pop()
    with_image = torch.nn.functional.normalize(vectors[:100] + random_vectors(100, 64, 2), dim=1)
    absent = []
    for queries in (with_image, random_vectors(100, 64, 3)):
        asked[:] = queries.numpy()
        absent.append(sum(searcher.answer(Query(texts=["x"]), fold).probably_absent for fold in [1] * 100))
    assert absent[0] <= 5 and absent[1] >= 60
    asked[:] = [with_image[0].numpy()] * 2
    assert searcher.answer(Query(like=[0])).probably_absent is None
    assert searcher.answer(Query(texts=["x"]), where=Filter(folder="/nowhere")).probably_absent is None


def test_a_gallery_of_format_1_answers_and_is_brought_up_to_date(index, folder, searcher, tmp_path):
    query = searcher.embed(Query(texts=["红色的圆"]))
    before = [(hit.image.path, hit.score) for hit in searcher.search(query, 30)]
    with closing(sqlite3.connect(tmp_path / "gallery" / ROWS)) as database, database:
        for column in ("ctime_ns", "inode", "caption", "taken"):
            database.execute(f"ALTER TABLE images DROP COLUMN {column}")
        for column in ("ctime_ns", "inode"):
            database.execute(f"ALTER TABLE bad_images DROP COLUMN {column}")
        database.execute("ALTER TABLE images RENAME COLUMN shard TO place")
        database.execute("ALTER TABLE images RENAME COLUMN status TO deleted")
        database.execute("DELETE FROM about WHERE key IN ('id', 'num_rows', 'absence_threshold', 'absence_images')")
        database.execute("UPDATE about SET value = '1' WHERE key = 'format'")
    old = open_searcher(str(tmp_path / "gallery"), device="cpu")
    assert [(hit.image.path, hit.score) for hit in old.search(query, 30)] == before
    assert old.answer(Query(texts=["红"])).probably_absent is None
    report = index()
    assert (report.unchanged, report.added) == (24, 0)
    new = open_searcher(str(tmp_path / "gallery"), device="cpu")
    assert [(hit.image.path, hit.score) for hit in new.search(query, 30)] == before
    os.rename(folder / "blue" / "0.png", tmp_path / "between")  # now the whole state of each file is known
    os.rename(tmp_path / "between", folder / "blue" / "0.png")
    assert index().moved == 1


@pytest.mark.parametrize("damage", ["cut", "foreign", "older"])
def test_a_faiss_index_that_does_not_belong_to_the_vectors_is_built_again(searcher, approximate, tmp_path, damage):
    path = tmp_path / "gallery" / APPROXIMATE_INDEX
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 10)
    elif damage == "foreign":
        path.write_bytes(path.read_bytes().replace(searcher.gallery.about["id"].encode(), b"0" * 16))
    else:
        path.write_bytes(b"IwFl" + bytes(1000))
    again = open_searcher(str(tmp_path / "gallery"), device="cpu", approximate=True)
    query = searcher.embed(Query(texts=["红色的圆"]))
    assert again.search(query, 10) == searcher.search(query, 10)
    assert searcher.gallery.about["id"].encode() in path.read_bytes()


def test_if_no_index_can_be_stored_the_answer_is_exact(searcher, tmp_path, caplog):
    pytest.importorskip("faiss")
    (tmp_path / "gallery" / APPROXIMATE_INDEX).mkdir()  # nothing can be written there
    again = open_searcher(str(tmp_path / "gallery"), device="cpu", approximate=True)
    query = searcher.embed(Query(texts=["红色的圆"]))
    assert again.search(query, 10) == searcher.search(query, 10) and "The search is exact" in caplog.text


# ---- export, and the script ----


def test_exported_vectors_are_those_of_the_gallery(searcher, tmp_path):
    import pyarrow.parquet

    assert export_gallery(searcher.gallery, str(tmp_path / "v.parquet"), "parquet") == 24
    assert export_gallery(searcher.gallery, str(tmp_path / "v.npy"), "npy") == 24
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pydict()
    vectors = np.load(tmp_path / "v.npy")
    names = (tmp_path / "v.txt").read_text(encoding="utf-8").splitlines()
    assert table["path"] == names == [image.path for image in searcher.gallery.images()]
    with pytest.raises(ValueError, match="v.txt is where the paths go"):
        export_gallery(searcher.gallery, str(tmp_path / "v.txt"), "npy")
    assert np.abs(np.array(table["vector"]) - vectors).max() == 0 and vectors.shape == (24, searcher.gallery.width)


def test_the_script_from_index_to_query(folder, bert_clip_path, tmp_path):
    gallery = ["--gallery", tmp_path / "gallery", "--device", "cpu"]
    (folder / "bad.png").write_text("no image")
    done = run_python("search_image.py", "index", "--model", bert_clip_path, "--images", folder, *gallery)
    assert done.returncode == 0 and "24 added, 1 cannot be decoded" in done.stdout, done.stderr
    assert "bad.png" in (tmp_path / "gallery" / "bad_images.csv").read_text()
    outputs = ["--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    options = [*gallery, "--text", "红", "蓝", "--top_k", "3", *outputs]
    done = run_python("-X", "importtime", "search_image.py", "query", *options)
    assert done.returncode == 0 and "| pandas" not in re.sub(" +", " ", done.stderr), done.stderr
    answers = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert list(answers) == ["红", "蓝"] and all(len(answer["hits"]) == 3 for answer in answers.values())
    assert answers["红"]["hits"][0]["path"][-20:] in done.stdout
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("data:image/jpeg") == 6


def test_a_folder_without_a_gallery_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a gallery"):
        Gallery(str(tmp_path))
