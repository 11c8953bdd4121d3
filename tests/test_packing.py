"""pack_shards.py: a table and its images as WebDataset shards, by its command line."""

import base64
import os
from contextlib import suppress
from pathlib import Path

import pytest
import webdataset
from conftest import run_python, write_csv
from test_shards import image_bytes

from component.packing.shards import _write_shard, pack_shards
from component.pairs.image_stores import ImageFolder
from component.pairs.sources import read_pair_files


def pack(folder, *options):
    files = ("--train_file", folder / "train.csv", "--image_path", folder / "images", "--out", folder / "shards")
    return run_python("pack_shards.py", *files, "--pairs_per_shard", "3", "--num_workers", "1", *options)


def test_shards_hold_the_good_pairs_in_order_and_a_second_run_writes_what_is_missing(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(7):
        (tmp_path / "images" / f"{number}.dat").write_bytes(image_bytes(number))
    (tmp_path / "images" / "page.jpg").write_text("<html>")
    names = ["0.dat", "gone.jpg", "1.dat", "2.dat", "page.jpg", "3.dat", "4.dat", "5.dat", "6.dat"]
    texts = [f"第{number}张" for number in range(8)] + ["  "]
    write_csv(tmp_path / "train.csv", zip(texts, names, strict=True), ("text", "filename"))
    done = pack(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 shards with 6 pairs" in done.stdout and "of which 0 shards were there" in done.stdout
    assert {line.split()[-2]: line.split()[-1] for line in done.stdout.splitlines() if "left out" in line} == {
        "missing": "1",
        "not_image": "1",
        "empty_text": "1",
    }
    shards = sorted(tmp_path.glob("shards/*.tar"))
    wanted = [("第0张", 0), ("第2张", 1), ("第3张", 2), ("第5张", 3), ("第6张", 4), ("第7张", 5)]
    read = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [(pair["txt"].decode(), pair["jpg"]) for pair in read] == [(text, image_bytes(n)) for text, n in wanted]
    assert [pair["__key__"] for pair in read][:3] == ["000000000", "000000002", "000000003"]
    pairs = [text for _, chunk in read_pair_files(str(tmp_path / "shards"), None) for text in chunk["text"]]
    assert pairs == [text for text, _ in wanted]

    before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    os.unlink(shards[1])
    with open(tmp_path / "train.csv", "a", encoding="utf-8") as file:
        file.write("第9张,6.dat\n")
    again = pack(tmp_path)
    assert "4 shards with 7 pairs" in again.stdout and "of which 2 shards were there" in again.stdout
    after = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    assert [content for content, _ in after] == [content for content, _ in before]
    assert [time for _, time in after][::2] == [time for _, time in before][::2]

    write_csv(tmp_path / "train.csv", [("第0张", "0.dat")], ("text", "filename"))
    fewer = pack(tmp_path)
    assert fewer.returncode == 2 and "has 3 shards more than this data (00001.tar, …)" in fewer.stderr


def test_a_wrong_folder_of_images_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.jpg").write_bytes(image_bytes(0))
    write_csv(tmp_path / "train.csv", [("第0张", "0.jpg")], ("text", "filename"))
    done = pack(tmp_path)
    assert done.returncode == 2
    assert "no pair was packed: the file names must be relative to --image_path" in done.stderr


def test_a_tsv_of_images_is_packed_too(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text_id": 1, "text": "小狗", "image_ids": ["7"]}\n', encoding="utf-8")
    (tmp_path / "images.tsv").write_bytes(b"7\t" + base64.b64encode(image_bytes(7)) + b"\n")
    done = pack(tmp_path, "--train_file", tmp_path / "texts.jsonl", "--image_path", tmp_path / "images.tsv")
    assert done.returncode == 0, done.stderr
    (pair,) = webdataset.WebDataset([str(tmp_path / "shards" / "00000.tar")], shardshuffle=False)
    assert (pair["txt"].decode(), pair["jpg"]) == ("小狗", image_bytes(7))
    write_csv(tmp_path / "train.csv", [("小狗", "7.jpg")], ("text", "filename"))
    wrong = pack(tmp_path, "--image_path", tmp_path / "nowhere")
    assert wrong.returncode == 2 and "nowhere does not exist; the file names in " in wrong.stderr


def test_a_table_without_rows_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    write_csv(tmp_path / "train.csv", [], ("text", "filename"))
    done = pack(tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("pack_shards.py: no pair was packed.\n")
    assert not (tmp_path / "shards").exists()


def test_shards_of_others_and_those_that_are_read_are_never_replaced(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(image_bytes(number))
    write_csv(tmp_path / "train.csv", [(f"第{n}张", f"{n}.jpg") for n in range(4)], ("text", "filename"))
    shards = tmp_path / "shards"
    assert pack(tmp_path).returncode == 0

    def unchanged_and_refused(files: Path, message: str) -> None:
        before = {path.name: path.read_bytes() for path in shards.iterdir()}
        with pytest.raises(ValueError, match=message):
            list(pack_shards(str(files), str(tmp_path / "images"), str(shards), pairs_per_shard=2, num_workers=1))
        assert {path.name: path.read_bytes() for path in shards.iterdir()} == before

    unchanged_and_refused(shards, "00000.tar was not packed here, or is one of those to read. Give another folder")
    (shards / "00001_stats.json").write_text('{"count": 10000, "successes": 9000}')  # as img2dataset writes them
    unchanged_and_refused(tmp_path / "train.csv", "00001.tar was not packed here")


def test_a_shard_whose_packing_was_interrupted_is_not_taken_for_that_of_its_old_data(tmp_path, monkeypatch):
    """The texts change, and change back after a run that was killed in between."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(image_bytes(0))
    (tmp_path / "shards").mkdir()

    def pack_text(text: str) -> None:
        pairs = [(ImageFolder(str(tmp_path / "images")), "0.jpg", text)]
        _write_shard(str(tmp_path / "shards" / "00000.tar"), 0, pairs)

    pack_text("旧")
    replace = os.replace
    for killed_at in range(3):
        names = iter(range(3))

        def killed(*paths, killed_at=killed_at, names=names):
            if next(names) == killed_at:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(os, "replace", killed)
        with suppress(KeyboardInterrupt):
            pack_text(f"新{killed_at}")
        monkeypatch.undo()
        pack_text("旧")
        assert [list(chunk["text"]) for _, chunk in read_pair_files(str(tmp_path / "shards"), None)] == [["旧"]]
