"""Verdicts first, rules afterwards: files are judged one by one, and their verdicts joined to a keep-list."""

import os
import random

import numpy as np
import pandas as pd
import pytest
from conftest import run_python, write_csv
from image_server import image_bytes
from test_keep_list import keys
from test_shards import sample, write

import filter_data
from component.filter.clip_score import ClipScorer
from component.filter.join import write_keep_list
from component.filter.judge import judge_pairs
from component.filter.rules import FilterRules
from component.filter.verdicts import COLUMNS, find_verdicts, judge_files, verdict_files
from component.image.perceptual_hash import NearDuplicates
from component.pairs.keep_list import KeepList
from component.pairs.table_files import pair_files

pytest.importorskip("duckdb")


def judge(folder, files, image_path=None, **options):
    (folder / "verdicts").mkdir(exist_ok=True)
    verdicts = verdict_files(pair_files(files), str(folder / "verdicts"))
    return judge_files(verdicts, image_path, num_workers=1, **options)


def join(folder, min_score=None, **rules) -> KeepList:
    path = str(folder / "keep.parquet")
    write_keep_list(find_verdicts([str(folder / "verdicts")]), path, FilterRules(**rules), min_score)
    return KeepList(path)


@pytest.fixture
def shards(tmp_path) -> str:
    """Two shards of five pairs; the last pair of the first one is in the second one too."""
    (tmp_path / "shards").mkdir()
    for number, pairs in enumerate((range(5), range(4, 9))):
        write(tmp_path / "shards" / f"{number:05d}.tar", *map(sample, pairs))
    return str(tmp_path / "shards")


def test_a_keep_list_keeps_what_filtering_in_one_go_keeps(tmp_path, bert_clip_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.jpg").write_bytes(image_bytes(number // 2, (300, 200 - 90 * (number == 5))))
    (images / "8.jpg").write_bytes(image_bytes(0, (240, 160)))  # looks like 0 and 1
    (images / "9.jpg").write_bytes(image_bytes(9)[:-200])
    names = [*(f"{number}.jpg" for number in range(10)), "none.jpg", "../x.jpg", "0.jpg", "0.jpg", "6.jpg", "7.jpg"]
    texts = "小狗 小狗 红色的花 a_cat 空 狗 小鸟 小狗 狗狗 狗狗 狗狗 狗狗 小狗 红色 花 花".split()
    texts[4] = " "
    path = str(write_csv(tmp_path / "train.csv", zip(texts, names, strict=True), ("text", "filename")))
    scorer = ClipScorer(bert_clip_path)
    assert judge(tmp_path, path, str(images), scorer=scorer).reasons["missing"] == 1
    (verdicts,) = find_verdicts([str(tmp_path / "verdicts")])
    low, middle = pd.read_parquet(verdicts)["score"].quantile([0.1, 0.5])
    for min_score, rules in (
        (middle, {"min_text": 2, "max_text": 3, "min_chinese": 0.5, "min_side": 150}),
        (None, {"max_aspect": 2, "exact_duplicates": True}),
        (low, {"near_duplicates": True, "exact_duplicates": True}),
    ):
        judged = judge_pairs(path, str(images), FilterRules(**rules), scorer, min_score, num_workers=1)
        expected = [
            name for rows, reasons in judged for name, why in zip(rows["filename"], reasons, strict=True) if not why
        ]
        assert 0 < len(expected) < 12
        assert keys(path, str(images), keep_list=join(tmp_path, min_score, **rules)) == expected


def test_a_copy_of_a_shard_with_another_time_is_not_judged_again(shards, tmp_path):
    assert judge(tmp_path, shards).files == 2
    os.utime(tmp_path / "shards" / "00000.tar", (1, 1))
    assert judge(tmp_path, shards).judged_before == 2


def test_shards_are_judged_once_and_again_when_they_change_and_a_damaged_one_keeps_no_other_waiting(shards, tmp_path):
    def script(*options):
        return run_python("filter_data.py", "--verdicts", tmp_path / "verdicts", *options, "--num_workers", "1")

    (tmp_path / "shards" / "00000_stats.json").write_text("{}")  # of img2dataset
    (tmp_path / "shards" / "00000.parquet").write_text("")
    first = script("--train_file", shards, "--part", "2/2")
    assert first.returncode == 0, first.stderr
    assert "Files judged: 1; " in first.stdout and os.listdir(tmp_path / "verdicts") == ["00001.tar.verdicts.parquet"]
    (tmp_path / "shards" / "00002.tar").write_bytes(b"<html>" * 1000)
    write(tmp_path / "shards" / "00003.tar", {**sample(9), "jpg": b"<html>"}, sample(10))
    second = script("--train_file", shards)
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert "Files judged: 2; " in second.stdout and second.stdout.strip().endswith(": 1")
    assert "00002.tar is not a tar" in second.stderr
    os.unlink(tmp_path / "shards" / "00002.tar")
    write(tmp_path / "shards" / "00001.tar", *map(sample, range(3, 9)))
    third = script("--train_file", shards)
    assert "Files judged: 1; " in third.stdout and third.returncode == 0
    joined = script("--keep_list", tmp_path / "keep.parquet", "--exact_duplicates")
    assert joined.returncode == 0, joined.stderr
    assert "- html                        1         12\n- exact_duplicate             2         10\n" in joined.stdout
    kept = keys(shards, keep_list=KeepList(str(tmp_path / "keep.parquet")))
    assert kept == [f"{number:09d}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)]


def test_a_shard_without_images_needs_no_rows_in_a_keep_list(shards, tmp_path):
    """img2dataset writes one when all of its links are dead."""
    write(tmp_path / "shards" / "00002.tar")
    assert judge(tmp_path, shards).files == 3
    keep_list = join(tmp_path)
    assert keep_list.counts(shards) == (10, 0) and len(keys(shards, keep_list=keep_list)) == 10
    write(tmp_path / "shards" / "00003.tar", sample(9))
    with pytest.raises(ValueError, match="00003.tar was not judged"):
        keep_list.counts(shards)


def test_a_table_without_rows_needs_no_rows_in_a_keep_list(tmp_path):
    """Spark writes such parts."""
    (tmp_path / "parts").mkdir()
    for number, rows in enumerate(([("小狗", "0.jpg")], [])):
        write_csv(tmp_path / "parts" / f"part-{number}.csv", rows, ("text", "filename"))
    assert judge(tmp_path, str(tmp_path / "parts"), str(tmp_path)).files == 2
    keep_list = join(tmp_path)
    assert keep_list.counts(str(tmp_path / "parts")) == (0, 1)
    write_csv(tmp_path / "parts" / "part-2.csv", [("小狗", "0.jpg")], ("text", "filename"))
    with pytest.raises(ValueError, match="part-2.csv was not judged"):
        keep_list.counts(str(tmp_path / "parts"))


def verdict_table(folder, name="a.csv", rows=3, **columns) -> None:
    (folder / "verdicts").mkdir(exist_ok=True)
    known = {"file": name, "digest": "d", "row": range(rows), "key": "k", "image": range(rows), "status": "ok"}
    numbers = dict.fromkeys(COLUMNS, 7)
    table = pd.DataFrame({**numbers, "score": None, "model": None, **known, **columns}, columns=list(COLUMNS))
    table.astype({"score": float, "model": object}).to_parquet(folder / "verdicts" / f"{name}.verdicts.parquet")


def test_near_duplicates_of_the_join_are_those_of_the_search(tmp_path):
    dice = random.Random(0)
    centres = [dice.getrandbits(64) for _ in range(150)]
    hashes = []
    for _ in range(900):
        bits = dice.sample(range(64), dice.choice((0, 1, 2, 3, 5)))
        hashes.append(dice.choice(centres) ^ sum(1 << bit for bit in bits))
    images = [dice.randrange(100) if dice.random() < 0.1 else 1000 + row for row in range(900)]
    looks = {}
    hashes = [looks.setdefault(image, value) for image, value in zip(images, hashes, strict=True)]
    verdict_table(tmp_path, rows=900, phash=np.array(hashes, np.uint64).view(np.int64), image=images)
    search, expected = NearDuplicates(), []
    for value, image in zip(hashes, images, strict=True):
        owner = search.find(value)
        expected.append(owner in (None, image))
        if owner is None:
            search.add(value, image)
    join(tmp_path, near_duplicates=True)
    assert pd.read_parquet(tmp_path / "keep.parquet")["keep"].tolist() == expected
    assert 200 < sum(expected) < 800


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{}], "the verdicts on a.csv have no score: judge it with a CLIP model"),
        (
            [{"score": 0.3, "model": "m"}, {"name": "b.csv", "file": "b.csv", "score": 0.3, "model": "n"}],
            "the scores of a.csv and b.csv are of different models",
        ),
        ([{"score": 0.3, "model": "m"}, {"name": "b.csv", "file": "a.csv"}], "a.csv occurs in two of the verdict"),
        ([], "there are no verdicts"),
    ],
)
def test_verdicts_that_cannot_be_joined_are_named(tmp_path, tables, message):
    for table in tables:
        verdict_table(tmp_path, **table)
    (tmp_path / "verdicts").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        join(tmp_path, min_score=0.2)
    assert os.listdir(tmp_path) == ["verdicts"]


def test_a_table_that_holds_no_verdicts_is_named(tmp_path):
    (tmp_path / "verdicts").mkdir()
    pd.DataFrame({"file": ["a"]}).to_parquet(tmp_path / "verdicts" / "a.verdicts.parquet")
    with pytest.raises(ValueError, match='DuckDB cannot join the verdicts: .*"digest"'):
        join(tmp_path)


def test_a_verdict_table_is_not_replaced_by_its_keep_list(tmp_path):
    verdict_table(tmp_path)
    (path,) = find_verdicts([str(tmp_path / "verdicts")])
    with pytest.raises(ValueError, match="a.csv.verdicts.parquet is one of the files that are read"):
        write_keep_list([path], path, FilterRules())
    assert list(pd.read_parquet(path)) == list(COLUMNS)


def test_verdicts_on_no_pairs_are_joined_into_an_empty_keep_list(tmp_path):
    judge(tmp_path, str(write_csv(tmp_path / "train.csv", [], ("text", "filename"))), str(tmp_path))
    join(tmp_path, exact_duplicates=True, near_duplicates=True)
    assert pd.read_parquet(tmp_path / "keep.parquet").empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train_file t.tar", "--image_path"),
        ("--train_file t.tar --image_path . --dry_run", "judge them with --verdicts FOLDER"),
        ("--train_file t.tar --verdicts v --min_side 9", "--min_side: verdicts are without rules; give it with"),
        ("--train_file t.tar --verdicts v --keep_list k.parquet", "a step of its own"),
        ("--train_file t.tar --verdicts v --report r.csv", "--report is for filtering a table"),
        ("--train_file t.tar --verdicts v w", "give one folder"),
        ("--verdicts v", "--verdicts needs --train_file"),
        ("--verdicts v --keep_list k.csv", "give a name that ends in .parquet"),
        ("--verdicts v --keep_list k.parquet --clip_model m", "--clip_model is for judging files"),
        ("--train_file t.csv --image_path . --dry_run --histogram h.png", "--histogram needs --clip_model"),
        ("--train_file t.csv --image_path . --part 1/2 --dry_run", "--part needs --verdicts"),
    ],
)
def test_options_that_do_not_go_together(monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["filter_data.py", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        filter_data.parse_args()
    assert message in capsys.readouterr().err


def test_parquet_with_images_is_judged_as_shards_are(monkeypatch, tmp_path, capsys):
    pd.DataFrame({"text": ["狗"], "image": [image_bytes(0)]}).to_parquet(tmp_path / "a.parquet")
    options = ["--train_file", str(tmp_path / "a.parquet"), "--image_path", str(tmp_path), "--dry_run"]
    monkeypatch.setattr("sys.argv", ["filter_data.py", *options])
    with pytest.raises(SystemExit, match="2"):
        filter_data.parse_args()
    assert "judge them with --verdicts FOLDER" in capsys.readouterr().err


def test_two_files_of_one_name_need_two_folders():
    with pytest.raises(ValueError, match="a/0.tar and b/0.tar have the same name"):
        verdict_files(["a/0.tar", "b/0.tar"], "verdicts")


def test_the_devices_share_the_pairs(bert_clip_path):
    dice = np.random.default_rng(0)
    images = list(dice.integers(0, 255, (7, 32, 32, 3), dtype=np.uint8))
    one, three = (ClipScorer(bert_clip_path, 2, devices=["cpu"] * count) for count in (1, 3))
    for count in (1, 2, 7):
        texts = ["小狗" * number for number in range(1, count + 1)]
        assert np.allclose(one(texts, images[:count]), three(texts, images[:count]), atol=1e-6)
    assert one.model == three.model
