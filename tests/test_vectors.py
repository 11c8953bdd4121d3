"""Vectors of whole shards, written on many machines, for galleries and vector databases."""

import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing

import numpy as np
import pyarrow.parquet
import pytest
import torch
import webdataset
from conftest import ENVIRONMENT, ROOT, run_python
from PIL import Image
from test_keep_list import keep_list
from test_keep_list import rows_of as judged

from component.checkpoint import load_checkpoint, load_model, save_checkpoint
from component.gallery.reader import Gallery
from component.processor import load_processor
from component.search.embed import Loading
from component.search.index import update
from component.search.open import gallery_to_write
from component.search.scan import Sources
from component.search.vector_files import open_vector_writer

SAMPLES = 10  # of each shard


def write_shard(path, first: int, damaged=()) -> None:
    """Images `first`, `first` + 1, … as `key.png` and `key.txt`; damaged ones are cut short."""
    with webdataset.TarWriter(str(path)) as shard:
        for number in range(first, first + SAMPLES):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            file = path.parent / "image.png"
            Image.fromarray(pixels).save(file)
            content = file.read_bytes()[: 60 if number in damaged else None]
            shard.write({"__key__": f"{number:03d}", "png": content, "txt": f"图 {number}"})


@pytest.fixture
def shards(tmp_path) -> list[str]:
    """Two shards; the second has a damaged image."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "00000.tar", 0)
    write_shard(folder / "00001.tar", SAMPLES, damaged=[SAMPLES + 3])
    return [str(folder / "00000.tar"), str(folder / "00001.tar")]


@pytest.fixture
def writer(bert_clip_path, tmp_path):
    return open_vector_writer(str(tmp_path / "vectors"), bert_clip_path, Loading(4, num_workers=0), "cpu")


def index(model, shards, folder, vectors=None):
    with gallery_to_write(str(folder), model, "cpu") as opened:
        return update(*opened, Sources(shards, vectors=vectors), Loading(4, num_workers=0))


def rows_of(folder) -> list:
    gallery = Gallery(str(folder))
    vectors = gallery.vectors()
    return [(image.file, image.digest, image.taken, vectors[image.row].tobytes()) for image in gallery.images()]


def test_a_gallery_from_vectors_is_the_one_from_images(writer, shards, bert_clip_path, tmp_path):
    written = [writer.write(shard) for shard in shards]
    assert [(one.images, len(one.bad_images), one.is_new) for one in written] == [(10, 0, True), (9, 1, True)]
    assert list(written[1].bad_images) == ["00001.tar/013.png"]
    with_vectors = index(bert_clip_path, shards, tmp_path / "with", writer.folder)
    alone = index(bert_clip_path, shards, tmp_path / "alone")
    assert (with_vectors.added, with_vectors.not_embedded, len(with_vectors.bad_images)) == (19, 19, 1)
    assert (alone.added, alone.not_embedded) == (19, 0)
    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "alone")


def test_a_shard_that_is_staged_again_is_not_embedded_again(shards, bert_clip_path, tmp_path):
    index(bert_clip_path, shards, tmp_path / "gallery")
    with closing(sqlite3.connect(tmp_path / "gallery" / "rows.sqlite")) as rows:
        rows.execute("DROP TABLE shards")  # as in a gallery of an older version
        rows.commit()
    assert index(bert_clip_path, shards, tmp_path / "gallery").unchanged == 19  # and what is in the shards is noted
    for shard in shards:
        shutil.copyfile(shard, f"{shard}.copy")
        os.replace(f"{shard}.copy", shard)
    report = index(bert_clip_path, shards, tmp_path / "gallery")
    assert (report.unchanged, report.added) == (19, 0)
    assert index(bert_clip_path, shards, tmp_path / "gallery").unchanged == 19
    write_shard(pathlib.Path(shards[0]), 50)
    assert index(bert_clip_path, shards, tmp_path / "gallery").added == 10


def test_a_mistyped_folder_of_vectors_is_named_and_not_embedded_again(shards, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder of vectors"):
        Sources(shards, vectors=str(tmp_path / "nowhere"))


def test_images_that_overflow_in_half_precision_are_embedded_again_in_another(shards, bert_clip_path, tmp_path):
    model, processor = load_checkpoint(bert_clip_path)
    model.visual_projection.weight.data *= 1e6
    save_checkpoint(model, processor, str(tmp_path / "large"))
    for precision, images, is_new in (("fp16", 0, True), ("fp16", 0, False), ("fp32", 10, True), ("fp16", 10, False)):
        options = Loading(4, num_workers=0), "cpu", precision
        written = open_vector_writer(str(tmp_path / "vectors"), str(tmp_path / "large"), *options).write(shards[0])
        assert (written.images, len(written.bad_images), written.is_new) == (images, 10 - images, is_new)


def test_images_without_vectors_are_embedded(writer, shards, bert_clip_path, tmp_path):
    writer.write(shards[0])
    report = index(bert_clip_path, shards, tmp_path / "with", writer.folder)
    assert (report.added, report.not_embedded) == (19, 10)


def test_the_columns_are_those_of_an_export_and_ids_never_change(writer, shards, tmp_path):
    for shard in shards:
        writer.write(shard)
    first = pyarrow.parquet.read_table(writer.folder, columns=["id", "path", "vector", "caption"]).to_pydict()
    shutil.rmtree(writer.folder)
    for shard in reversed(shards):
        writer.write(shard)
    again = pyarrow.parquet.read_table(writer.folder, columns=["id", "path"]).to_pydict()
    assert first["id"] == again["id"] and len(set(first["id"])) == 19
    assert first["path"][0] == "00000.tar/000.png" and first["caption"][0] == "图 0"
    assert np.abs(np.linalg.norm(np.array(first["vector"], np.float32), axis=1) - 1).max() < 1e-2


def test_a_copy_with_another_time_is_the_same_shard_and_other_members_are_not(writer, shards, tmp_path):
    writer.write(shards[0])
    staged = tmp_path / "staged" / "00000.tar"
    staged.parent.mkdir()
    shutil.copy(shards[0], staged)
    os.utime(staged, (1, 1))
    assert not writer.write(str(staged)).is_new
    write_shard(staged, 50)
    assert writer.write(str(staged)).is_new


def other_bytes(shard: str, model: str, tmp_path) -> tuple[str, str]:
    """The members keep their names, sizes and positions."""
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[0].offset_data
    with open(shard, "r+b") as file:
        file.seek(offset + 50)
        file.write(bytes(5))
    return model, "another 00000.tar"


def other_members(shard: str, model: str, tmp_path) -> tuple[str, str]:
    shutil.copy(tmp_path / "shards" / "00001.tar", shard)
    return model, "another 00000.tar"


def other_model(shard: str, model: str, tmp_path) -> tuple[str, str]:
    changed = load_model(model)
    with torch.no_grad():
        changed.visual_projection.weight += 0.1
    save_checkpoint(changed, load_processor(model), str(tmp_path / "other"))
    return str(tmp_path / "other"), "another model"


def damaged_file(shard: str, model: str, tmp_path) -> tuple[str, str]:
    (tmp_path / "vectors" / "00000.tar.parquet").write_bytes(b"PAR1")
    return model, "is not a file of vectors"


@pytest.mark.parametrize("change", [other_bytes, other_members, other_model, damaged_file])
def test_vectors_of_something_else_are_refused(writer, shards, bert_clip_path, tmp_path, change):
    writer.write(shards[0])
    model, message = change(shards[0], bert_clip_path, tmp_path)
    with pytest.raises(ValueError, match=message):
        index(model, shards, tmp_path / "gallery", writer.folder)


def test_the_script_continues_after_a_damaged_shard_and_is_restartable(shards, bert_clip_path, tmp_path):
    (tmp_path / "shards" / "00002.tar").write_text("not a tar")
    vectors = tmp_path / "vectors"
    command = ["search_image.py", "embed", "--model", bert_clip_path, "--vectors", vectors, "--device", "cpu"]
    options = ["--num_workers", 0, "--images", tmp_path / "shards" / "{00002..00000}.tar"]
    done = run_python(*command, *options)
    assert done.returncode == 2 and "00002.tar is not a tar" in done.stderr, done.stderr
    assert "9 vectors" in done.stdout and "1 cannot be decoded" in done.stdout
    assert "013.png" in (vectors / "_00001.tar.bad_images.csv").read_text()
    assert pyarrow.parquet.read_table(vectors).num_rows == 19
    parts = [run_python(*command, "--images", *shards, "--part", f"{number}/2") for number in (1, 2)]
    assert [done.returncode for done in parts] == [0, 0]
    assert [done.stdout.count("(there already)") for done in parts] == [1, 1]


def test_a_keep_list_leaves_images_out_and_another_one_embeds_again(shards, bert_clip_path, tmp_path):
    def embed(keep) -> str:
        keep_list(tmp_path / "keep.parquet", judged(shards[:1], keep=keep))
        options = ["--keep_list", tmp_path / "keep.parquet", "--images", shards[0], "--device", "cpu"]
        command = ["search_image.py", "embed", "--model", bert_clip_path, "--vectors", tmp_path / "vectors"]
        done = run_python(*command, "--num_workers", 0, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "7 vectors" in embed(lambda row: row > 2) and "3 left out" in embed(lambda row: row > 2)
    assert "already" in embed(lambda row: row > 2) and "8 vectors" in embed(lambda row: row > 1)


def test_two_processes_share_the_shards(shards, bert_clip_path, tmp_path):
    arguments = ["--model", bert_clip_path, "--images", *shards, "--vectors", tmp_path / "vectors", "--device", "cpu"]
    done = run_python("search_image.py", "embed", *arguments, "--num_workers", 0, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" vectors in ") == 2 and "already" not in done.stdout
    assert pyarrow.parquet.read_table(tmp_path / "vectors").num_rows == 19


@pytest.mark.parametrize("wrong, message", [("pairs.csv", "does not hold its images"), ("a/00000.tar", "same name")])
def test_what_cannot_be_embedded_is_named_before_the_work(shards, bert_clip_path, tmp_path, wrong, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "pairs.csv").write_text("text,filename\n一,1.png\n", encoding="utf-8")
    shutil.copy(shards[0], tmp_path / "a")
    arguments = ["--model", bert_clip_path, "--vectors", tmp_path / "vectors", "--images", *shards, tmp_path / wrong]
    done = run_python("search_image.py", "embed", *arguments)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.glob("vectors/*")), done.stderr


@pytest.mark.slow
def test_the_recipe_for_ray_embeds_shards(shards, bert_clip_path, tmp_path):
    pytest.importorskip("ray")
    page = (pathlib.Path(ROOT) / "docs" / "search.md").read_text(encoding="utf-8")
    (recipe,) = (block for block in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "import ray" in block)
    (tmp_path / "recipe.py").write_text(recipe, encoding="utf-8")
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    arguments = [tmp_path / "shards" / "*.tar", bert_clip_path, tmp_path / "vectors"]
    subprocess.run([sys.executable, tmp_path / "recipe.py", *arguments], check=True, env=environment, timeout=300)
    assert pyarrow.parquet.read_table(tmp_path / "vectors").num_rows == 19
