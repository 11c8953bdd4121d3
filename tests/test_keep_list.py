"""Keep-lists: the pairs that they leave out are left out everywhere, and a list of other data is an error."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import run_python
from test_shards import sample, write

from component.argument import load_arguments
from component.evaluation.retrieval_data import read_retrieval_data
from component.pairs.image_stores import key_of
from component.pairs.keep_list import KeepList, PairsDigest
from component.pairs.sources import read_pair_files
from component.pairs.table_files import pair_files
from component.search.scan import Sources, scan
from component.training.run_identity import run_of


@pytest.fixture
def shards(tmp_path) -> str:
    """Two shards of five and four pairs."""
    (tmp_path / "shards").mkdir()
    for number, pairs in enumerate((range(5), range(5, 9))):
        write(tmp_path / "shards" / f"{number:05d}.tar", *map(sample, pairs))
    return str(tmp_path / "shards" / "{00000..00001}.tar")


def keys(files, image_path=None, **options) -> list[str]:
    """The keys of all pairs, in order."""
    read = read_pair_files(files, image_path, **options)
    return [key_of(store, locator) for store, chunk in read for locator in chunk["filename"]]


def rows_of(files, image_path=None, keep=lambda row: row % 2 == 0) -> pd.DataFrame:
    """A keep-list of every other pair of each file."""
    tables = []
    for file in pair_files(files):
        digest, count = PairsDigest(), 0
        for store, chunk in read_pair_files(file, image_path):
            digest.update(store, chunk)
            count += len(chunk)
        row = np.arange(count)
        tables.append(pd.DataFrame({"file": file, "digest": digest.hexdigest(), "row": row, "keep": keep(row)}))
    return pd.concat(tables, ignore_index=True)


def keep_list(path, rows: pd.DataFrame, **options) -> KeepList:
    rows.to_parquet(path, **options)
    return KeepList(str(path))


def test_pairs_are_left_out_and_counted_whatever_the_kind_of_file(shards, data, tmp_path):
    pd.read_csv(data / "train.csv").to_parquet(data / "train.parquet")
    files, images = [shards, str(data / "train.csv"), str(data / "train.parquet")], str(data / "images")
    kept = keep_list(tmp_path / "keep.parquet", rows_of(files, images), row_group_size=7)
    evens = ["0.png", "2.png", "4.png", "6.png"]
    assert keys(files, images, keep_list=kept) == [f"00000000{n}" for n in (0, 2, 4, 5, 7)] + evens + evens
    assert kept.counts(files) == (13, 12)


def test_a_file_without_any_pair_to_keep_and_comparisons_with_null(shards, tmp_path):
    rows = rows_of(shards, keep=lambda row: np.full(len(row), None)).astype({"keep": "boolean"})
    assert keys(shards, keep_list=keep_list(tmp_path / "keep.parquet", rows)) == []


def test_files_are_found_where_they_have_moved_and_told_apart_by_their_folders(shards, tmp_path):
    shutil.copytree(tmp_path / "shards", tmp_path / "b" / "shards")
    both = [shards, shards.replace("shards", "b/shards")]
    rows = rows_of(both[0]), rows_of(both[1], keep=lambda row: row == 3)
    kept = keep_list(tmp_path / "keep.parquet", pd.concat(rows))
    (tmp_path / "disk").mkdir()
    shutil.move(tmp_path / "b", tmp_path / "disk" / "b")
    assert keys(str(tmp_path / "disk" / "b" / "shards" / "*.tar"), keep_list=kept) == ["000000003", "000000008"]
    shutil.move(tmp_path / "shards" / "00000.tar", tmp_path / "00000.tar")
    with pytest.raises(ValueError, match="00000.tar was not judged: .* several files of that name"):
        keys(str(tmp_path / "00000.tar"), keep_list=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write(folder / "00001.tar", *map(sample, range(5, 8))), "had 4 pairs, and now it has 3"),
        (lambda folder: write(folder / "00001.tar", *map(sample, range(4, 8))), "had other keys or texts"),
        (lambda folder: shutil.copy(folder / "00001.tar", folder / "00002.tar"), "00002.tar was not judged"),
    ],
)
def test_a_list_of_other_data_is_an_error(shards, tmp_path, change, message):
    kept = keep_list(tmp_path / "keep.parquet", rows_of(shards))
    change(tmp_path / "shards")
    with pytest.raises(ValueError, match=message):
        keys(str(tmp_path / "shards" / "*.tar"), keep_list=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.sample(frac=1, random_state=0), "does not have the rows 0, 1, 2, .* ORDER BY file, row"),
        (lambda rows: rows[rows["row"] != 2], "does not have the rows"),
        (lambda rows: pd.concat([rows, rows]), "does not have the rows"),
        (lambda rows: rows.drop(columns="keep"), r"not a keep-list: .* and has file \(.*"),
        (lambda rows: rows.drop(columns="digest"), r"not a keep-list: .* and has file \(.*"),
        (lambda rows: pd.concat([rows, rows[:1].assign(file=None)]), "rows without file, digest or row"),
        (lambda rows: rows.assign(file=7), r"not a keep-list: .*file \(int64\)"),
        (lambda rows: rows.astype({"keep": int}), r"keep \(true or false\), and has .*keep \(int64\)"),
    ],
)
def test_a_list_that_is_not_whole_or_not_sorted_is_an_error(shards, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        keep_list(tmp_path / "keep.parquet", change(rows_of(shards)))


def test_training_takes_the_kept_pairs_and_reads_them_again_when_the_list_changes(
    shards, tmp_path, bert_clip_path, trainer, caplog
):
    path = tmp_path / "keep.parquet"
    keep_list(path, rows_of(shards))
    tables = str(tmp_path / "tables")
    built = trainer(train_file=shards, image_path=None, keep_list=str(path), pair_table=tables)
    table = built.train_dataset.table
    assert [table.filename(row)[-5] for row in range(len(table))] == list("02457")
    assert "keeps 5 pairs and leaves out 4" in caplog.text
    keep_list(path, rows_of(shards, keep=lambda row: row < 2))
    other = trainer(train_file=shards, image_path=None, keep_list=str(path), pair_table=tables)
    assert len(other.train_dataset) == 4


def test_another_keep_list_is_another_run(shards, tmp_path, train_args):
    recipes = []
    for keep in (lambda row: row > 0, lambda row: row > 1):
        keep_list(tmp_path / "keep.parquet", rows_of(shards, keep=keep))
        keys = {"train_file": shards, "image_path": None, "keep_list": str(tmp_path / "keep.parquet")}
        recipes.append(run_of(load_arguments(train_args(**keys))).recipe)
    different = {key for key in recipes[0] if recipes[0][key] != recipes[1][key]}
    assert different == {"keep_list"}


def test_the_scripts_of_evaluation_and_search_say_what_they_leave_out(shards, tmp_path, bert_clip_path):
    keep_list(tmp_path / "keep.parquet", rows_of(shards))
    model = ("--model", bert_clip_path, "--keep_list", tmp_path / "keep.parquet")
    done = run_python("evaluate_clip.py", *model, "--test_file", shards, "--output", tmp_path / "results")
    assert done.returncode == 0 and "keeps 5 pairs and leaves out 4" in done.stderr, done.stderr
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["images"] == 5
    options = ("index", *model, "--images", shards, "--gallery", tmp_path / "gallery", "--num_workers", "0")
    done = run_python("search_image.py", *options)
    assert done.returncode == 0 and "4 pairs by the keep-list" in done.stdout, done.stdout + done.stderr


def test_evaluation_and_search_honour_the_list(shards, tmp_path):
    kept = keep_list(tmp_path / "keep.parquet", rows_of(shards))
    data = read_retrieval_data(shards, None, keep_list=kept)
    assert [name[-5] for name in data.image_names] == list("02457")
    found = scan(Sources([shards], keep_list=kept))
    assert [path[-5] for path in found.files] == list("02457")
    assert found.passed_over == {"pairs by the keep-list": 4}
