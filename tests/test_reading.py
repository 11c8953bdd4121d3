"""A disk that fails for a moment is waited for, whatever is read from it."""

import errno
import gzip
import os
import resource
import tarfile
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.torch
import torch

from component.ground.file_state import FileState
from component.ground.reading import open_to_read, read_file
from component.ground.retries import with_retries
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.shards import index_shard
from component.pairs.table import read_table
from component.training.feature_blocks import Block


@contextmanager
def no_descriptor_left(seconds: float | None = None):
    """Let no file be opened in the block, or only during the first `seconds` of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def end() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    timer = threading.Timer(seconds or 0, end)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        end()


@pytest.fixture
def readers(tmp_path):
    """Name of a reader → a function that reads and returns something to compare."""
    (tmp_path / "a.csv").write_text("text,filename\n狗,a.jpg\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.csv", "wt", encoding="utf-8") as file:
        file.write("text,filename\n狗,a.jpg\n")
    (tmp_path / "a.jpg").write_bytes(b"an image")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    (tmp_path / "arrays").mkdir()
    writer = ArrayWriter(str(tmp_path / "arrays"))
    writer.append("numbers", np.arange(3))
    writer.finish({})
    block = str(tmp_path / "a.safetensors")
    safetensors.torch.save_file({"keys": torch.arange(3), "features": torch.ones(3, 2)}, block)
    index = index_shard(str(tmp_path / "a.tar"))
    return {
        "a table": lambda: [chunk.values.tolist() for chunk in read_table(str(tmp_path / "a.csv"))],
        "a packed table": lambda: [chunk.values.tolist() for chunk in read_table(str(tmp_path / "b.csv"))],
        "the index of a shard": lambda: index_shard(str(tmp_path / "a.tar")),
        "an image in a shard": lambda: index.shard.read(index.locators[0]),
        "mapped arrays": lambda: FlatArrays.open(str(tmp_path / "arrays"))["numbers"].tolist(),
        "a feature block": lambda: Block.open(block).features.tolist(),
    }


WHAT = ["a table", "a packed table", "the index of a shard", "an image in a shard", "mapped arrays", "a feature block"]


@pytest.mark.parametrize("what", WHAT)
def test_reading_succeeds_once_a_descriptor_is_free(readers, what):
    wanted = readers[what]()
    with no_descriptor_left(seconds=0.1):
        assert readers[what]() == wanted


def test_a_block_that_cannot_be_read_is_not_a_damaged_one(readers):
    with no_descriptor_left(), pytest.raises(OSError) as caught:
        readers["a feature block"]()
    assert caught.value.errno == errno.EMFILE and caught.value.filename.endswith("a.safetensors")


def test_a_file_is_opened_again_where_a_read_failed(tmp_path):
    lines = [b"%d\n" % number for number in range(100_000)]
    (tmp_path / "a").write_bytes(b"".join(lines))
    with open_to_read(str(tmp_path / "a")) as file:
        first = [file.readline() for _ in range(10)]
        os.close(file.fileno())  # the next read fails, as one of a stale handle does
        assert first + file.readlines() == lines


def test_a_file_that_was_replaced_meanwhile_is_not_read_on(tmp_path):
    (tmp_path / "a").write_bytes(bytes(2**20))
    with open_to_read(str(tmp_path / "a")) as file:
        file.read(1)
        os.close(file.fileno())
        (tmp_path / "b").write_bytes(bytes(2**20))
        (tmp_path / "b").replace(tmp_path / "a")
        with pytest.raises(ValueError, match="has changed while it was read"):
            file.read()


def test_an_error_caused_by_the_name_is_raised_at_once(tmp_path):
    (tmp_path / "file").touch()
    attempts = []

    def read(path) -> FileState:
        attempts.append(path)
        return FileState.of(path)

    for path in (tmp_path / "none", tmp_path / "file" / "inside", tmp_path / ("x" * 300)):
        with pytest.raises(OSError):
            with_retries(lambda path=path: read(path))
    assert len(attempts) == 3


def test_a_disk_that_does_not_answer_is_an_error_that_names_the_file():
    with pytest.raises(OSError) as caught:
        read_file("/proc/self/mem")
    assert caught.value.errno == errno.EIO and caught.value.filename == "/proc/self/mem"
