"""pack_shards.py: a table and its images as WebDataset shards, by its command line."""

import os

import webdataset
from conftest import run_python, write_csv
from test_shards import image_bytes

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
