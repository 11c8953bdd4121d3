"""A table is read once and mapped from then on: always the same pairs, whatever happens to the files."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
from conftest import CAPTIONS

from component.dataset import PairDataset, Pairs
from component.embedding import text_batches
from component.pairs import prepared
from component.pairs.flat_arrays import ArrayWriter
from component.processor import load_processor

READ = "the pairs are read once"


@pytest.fixture
def load(data, bert_clip_path, tmp_path, caplog):
    """The data set, with its table prepared in a folder; what was logged stands in caplog."""
    processor = load_processor(bert_clip_path)
    caplog.set_level("INFO", "component")

    def load_pairs(file="train.csv", folder=str(tmp_path / "tables"), max_seq_length=16) -> Pairs:
        caplog.clear()
        return PairDataset(str(data / file), str(data / "images"), processor, max_seq_length, folder=folder)

    return load_pairs


def rows_of(pairs: Pairs) -> list:
    """All that a table says of its rows, and of itself."""
    table = pairs.table
    rows = np.arange(len(table))
    tokens, lengths = table.tokens(rows)
    facts = [table.file, table.num_empty_texts, table.num_long_texts, table.highest_token_id, table.share_of_unknown]
    names = [table.filename(row) for row in rows]
    ids = [array.tolist() for array in (table.text_ids, table.image_ids, table.first_rows, table.image_numbers)]
    return [tokens.tolist(), lengths.tolist(), names, ids, facts, table.share_of_repeated_captions]


def files(folder) -> list[str]:
    return sorted(os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)


def test_a_mapped_table_is_the_one_that_was_read(load, data, tmp_path, caplog):
    (data / "train.csv").write_text(
        "text,filename\n小狗,0.png\n,1.png\n长" + "长" * 30 + ",d/1.png\n小狗,0.png\n", encoding="utf-8"
    )
    in_memory, first = load(folder=None), load()
    assert READ in caplog.text
    second = load()
    assert not caplog.records
    assert rows_of(in_memory) == rows_of(first) == rows_of(second)
    assert second.table.first_rows.tolist() == [0, 1] and second.table.image_numbers.tolist() == [0, 1, 0]
    assert {file.split("/")[-3] for file in files(tmp_path / "tables")} == {"tables"}


def test_an_example_of_a_mapped_table_can_be_changed_like_any_other(load):
    example = (load(), load())[1].__getitems__([3, 1])
    example["tokens"][0] = example["ids"][0, 0] = example["rows"][0] = 5


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "missing"])
@pytest.mark.parametrize("name", ["tokens.bin", "locator_offsets.bin", "first_rows.bin", "arrays.json"])
def test_a_damaged_table_is_read_again_with_a_line(load, tmp_path, caplog, name, damage):
    wanted = rows_of(load())
    (path,) = (path for path in files(tmp_path / "tables") if path.endswith(name))
    size = os.path.getsize(path)
    {
        "cut": lambda: os.truncate(path, size - 2),
        "longer": lambda: os.truncate(path, size + 9),
        "empty": lambda: os.truncate(path, 0),
        "missing": lambda: os.unlink(path),
    }[damage]()
    assert rows_of(load()) == wanted
    assert "its files are read again" in caplog.text and READ in caplog.text
    assert rows_of(load()) == wanted and not caplog.records


@pytest.mark.parametrize(
    "record", ["[]", "{}", "null", '{"facts": {}, "arrays": {}}', '{"facts": 1, "arrays": {"a": 2}}']
)
def test_a_record_of_nonsense_is_a_damaged_table(load, tmp_path, caplog, record):
    wanted = rows_of(load())
    (path,) = (path for path in files(tmp_path / "tables") if path.endswith(".json"))
    with open(path, "w") as file:
        file.write(record)
    assert rows_of(load()) == wanted and READ in caplog.text


def test_offsets_that_are_no_longer_those_of_the_tokens_are_damage(load, tmp_path, caplog):
    wanted = rows_of(load())
    (path,) = (path for path in files(tmp_path / "tables") if path.endswith("token_offsets.bin"))
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))
    assert rows_of(load()) == wanted and READ in caplog.text


def test_a_table_of_the_same_size_and_time_as_the_old_one_is_read_again(load, data):
    before = load().table.text_ids
    path = data / "train.csv"
    status, rows = path.stat(), path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n", encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert load().table.text_ids.tolist() == before[::-1].tolist()


def test_a_caption_has_the_tokens_of_the_same_query(load, data, bert_clip_path):
    (data / "train.csv").write_text("text,filename\n⼩狗☃,0.png\n小狗☃,1.png\n", encoding="utf-8")
    processor, table = load_processor(bert_clip_path), load().table
    tokens, lengths = table.tokens(np.arange(2))
    first, second = np.split(tokens, lengths[:1])
    (_, batch), *_ = text_batches(processor, ["⼩狗☃"], 1)
    assert first.tolist() == second.tolist() == batch["input_ids"][0].tolist()
    assert table.share_of_unknown == pytest.approx(1 / 3)


def test_a_table_of_an_older_format_is_replaced(load, tmp_path, caplog):
    before = load()
    (record,) = (tmp_path / "tables").glob("*/arrays.json")
    content = json.loads(record.read_text())
    del content["facts"]["format"]
    record.write_text(json.dumps(content))
    assert load().table.text_ids.tolist() == before.table.text_ids.tolist()
    assert "was written by another version: its files are read again" in caplog.text
    assert len(list((tmp_path / "tables").iterdir())) == 1


def test_a_table_that_changed_is_read_again_in_place_of_the_old_one(load, data, tmp_path, caplog):
    load()
    before = files(tmp_path / "tables")
    with open(data / "train.csv", "a", encoding="utf-8") as file:
        file.write("另一句话,,0.png\n")
    assert len(load()) == len(CAPTIONS) + 1
    assert "was made from other files or other versions of them" in caplog.text
    assert files(tmp_path / "tables") == before


def test_a_file_of_the_same_size_and_another_time_is_read_again(load, data):
    load()
    content = (data / "train.csv").read_text(encoding="utf-8")
    (data / "train.csv").write_text(content.replace("0.png", "7.png"), encoding="utf-8")
    os.utime(data / "train.csv", ns=(1, 1))
    assert load().table.filename(0) == "7.png"


def test_another_length_of_texts_is_another_table(load, tmp_path):
    assert max(load(max_seq_length=5).table.tokens(np.arange(8))[1]) == 5
    assert max(load(max_seq_length=6).table.tokens(np.arange(8))[1]) == 6
    assert max(load(max_seq_length=5).table.tokens(np.arange(8))[1]) == 5
    assert len(os.listdir(tmp_path / "tables")) == 2


@pytest.mark.parametrize("place", ["/proc/tables", "{tmp}/file", "{tmp}/file/inside"])
def test_a_folder_that_cannot_be_written_is_said_once_and_the_table_kept_in_memory(load, tmp_path, caplog, place):
    (tmp_path / "file").touch()
    pairs = load(folder=place.format(tmp=tmp_path))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "kept in memory and made again at each start, because" in warning and "`pair_table`" in warning
    assert rows_of(pairs) == rows_of(load(folder=None))


def test_too_little_room_is_said_before_the_table_is_read(load, tmp_path, caplog, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 9, 9)
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: usage)
    assert len(load()) == len(CAPTIONS)
    assert "0 MB free, and it needs about" in caplog.text and READ not in caplog.text
    assert not files(tmp_path / "tables")


def test_a_disk_that_fills_up_on_the_way_is_one_line_and_leaves_nothing(load, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))  # as a full disk: the write stops half way
    try:
        with pytest.raises(ValueError, match="cannot be written to .*Make room, or set `pair_table`"):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not files(tmp_path / "tables")
    assert len(load()) == len(CAPTIONS)


def test_a_table_that_cannot_be_read_leaves_nothing(load, data, tmp_path):
    (data / "train.csv").write_text("text,filename\n小狗,0.png\n猫,1.png,2,3,4\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3"):
        load()
    (data / "train.csv").write_text("text,filename\n,0.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row with a text .1 rows"):
        load()
    assert not files(tmp_path / "tables")


def test_what_a_run_was_writing_when_it_was_killed_is_swept(load, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(ArrayWriter, "finish", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=load)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL and files(tmp_path / "tables")
    assert len(load()) == len(CAPTIONS)
    assert len(os.listdir(tmp_path / "tables")) == 1


def test_two_processes_may_prepare_one_table_at_once(load, tmp_path):
    fork = multiprocessing.get_context("fork")
    both, results = fork.Barrier(2), fork.SimpleQueue()

    def prepare():
        both.wait()
        results.put(rows_of(load()))

    processes = [fork.Process(target=prepare) for _ in range(2)]
    for process in processes:
        process.start()
    one, other = results.get(), results.get()
    for process in processes:
        process.join()
    assert one == other == rows_of(load())
    assert len(os.listdir(tmp_path / "tables")) == 1


def test_a_worker_is_given_the_path_of_a_prepared_table(load):
    pairs = load()
    content = pickle.dumps(pairs.table)
    assert len(content) < 300
    assert rows_of(Pairs(pickle.loads(content), pairs.images)) == rows_of(pairs)


def test_a_table_in_memory_travels_to_a_worker_too(load):
    pairs = load(folder=None)
    assert rows_of(pickle.loads(pickle.dumps(pairs))) == rows_of(pairs)


def test_a_worker_never_sees_another_table_than_its_run(load, data):
    content = pickle.dumps(load().table)
    with open(data / "train.csv", "a", encoding="utf-8") as file:
        file.write("另一句话,,0.png\n")
    load()
    with pytest.raises(ValueError, match="was replaced while it was in use"):
        pickle.loads(content)


def test_a_table_that_is_removed_stays_readable_and_one_that_is_cut_is_one_line(load, tmp_path):
    pairs = load()
    wanted = rows_of(pairs)
    (tokens,) = (path for path in files(tmp_path / "tables") if path.endswith("tokens.bin"))
    os.truncate(tokens, 4)
    with pytest.raises(OSError, match="tokens.bin was cut while it was in use"):
        pairs[0]
    pairs = load()
    shutil.rmtree(tmp_path / "tables")
    assert rows_of(pairs) == wanted
