"""Files and folders appear complete or not at all, and have one writer at a time."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import SafetensorError
from safetensors.torch import save_file

from component.ground.files import full_disk, is_temporary, new_file, new_folder, sweep, write_json
from component.ground.lock import sole_writer


@pytest.fixture
def start():
    """Start Python with code that prints a line when it has begun and then waits."""
    started = []

    def start_one(code: str, *arguments) -> subprocess.Popen:
        code = (
            f"import os, sys, time\nfrom component.ground.files import *\nfrom component.ground.lock import *\n{code}"
        )
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "begun\n"
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


WAIT = "print('begun', flush=True); time.sleep(100)"
WRITE = f"with new_file(sys.argv[1]) as file: {WAIT}"
WRITE_FOLDER = f"with new_folder(sys.argv[1]): {WAIT}"
HOLD = f"with sole_writer(sys.argv[1]): {WAIT}"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("mode, content", [("w", "新"), ("wb", b"new")])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path, mode, content, error):
    (tmp_path / "out").write_text("old")
    with pytest.raises(error), new_file(str(tmp_path / "out"), mode) as file:
        file.write(content)
        raise error
    assert (tmp_path / "out").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_the_name_does_not_exist_before_the_block_ends(tmp_path):
    with new_file(str(tmp_path / "out")) as file:
        file.write("新")
        assert all(map(is_temporary, os.listdir(tmp_path)))
    assert (tmp_path / "out").read_text(encoding="utf-8") == "新" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["a" * 255, "图" * 85, ".hidden", "with space", b"gbk\xcd\xbc".decode(errors="surrogateescape")]
)
def test_any_valid_file_name_can_be_written(tmp_path, name):
    with new_file(str(tmp_path / name)) as file:
        file.write("x")
    assert os.listdir(tmp_path) == [name]


def test_two_writers_of_one_name_do_not_share_a_temporary_file(tmp_path):
    with new_file(str(tmp_path / "out")) as first, new_file(str(tmp_path / "out")) as second:
        first.write("1" * 9)
        second.write("2")
        assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "out").read_text() == "1" * 9 and os.listdir(tmp_path) == ["out"]


def test_a_link_stays_a_link_and_a_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real" / "file")
    with new_file(str(tmp_path / "out")):
        pass
    (tmp_path / "usual").touch()
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("code", [WRITE, WRITE_FOLDER])
def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path, start, code):
    mine = ["mine.tmp", ".mine.tmp", ".out.part", "out.old", ".out.0123-abc.tmp"]
    for name in mine:
        (tmp_path / name).touch()
    killed, living = start(code, tmp_path / "out"), start(code, tmp_path / "out")
    killed.kill()
    killed.wait()
    sweep(str(tmp_path))
    left = set(os.listdir(tmp_path)) - set(mine)
    assert len(left) == 1 and all(map(is_temporary, left)) and living.poll() is None
    assert set(mine) < set(os.listdir(tmp_path))


def test_recent_files_of_another_machine_are_left_alone(tmp_path):
    (tmp_path / ".out.01234567-01234567.tmp").touch()
    (tmp_path / ".old.01234567-01234567.tmp").touch()
    os.utime(tmp_path / ".old.01234567-01234567.tmp", (0, 0))
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == [".out.01234567-01234567.tmp"]


def test_sweep_restores_a_folder_whose_replacement_was_killed(tmp_path, monkeypatch):
    """macOS and Windows cannot exchange two folders in one step, so a kill can come between two renames."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # a C library without renameat2
    rename = os.rename

    def killed(source, target):
        if str(target).endswith("out") and not os.path.exists(target):  # the old folder has made way
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt), new_folder(str(tmp_path / "out")):
        pass
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders in one step")
def test_a_folder_that_is_replaced_exists_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    there, rename = [], os.rename
    monkeypatch.setattr(os, "rename", lambda *names: (rename(*names), there.append(path.is_dir())))
    with new_folder(str(path)) as new, open(os.path.join(new, "number"), "w") as file:
        file.write("2")
    assert all(there) and (path / "number").read_text() == "2" and os.listdir(tmp_path) == ["out"]


def test_weights_in_a_new_folder_get_the_usual_permissions(tmp_path):
    """safetensors creates its files with mode 0600."""
    with new_folder(str(tmp_path / "out")) as folder:
        save_file({"weight": torch.zeros(1)}, os.path.join(folder, "model.safetensors"))
    (tmp_path / "usual").touch()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), SafetensorError("I/O error: x (os error 13)")])
def test_only_a_full_disk_is_called_full(error):
    assert full_disk(error) is None
    assert full_disk(SafetensorError("I/O error: x (os error 28)")) == full_disk(OSError(errno.ENOSPC, "x"))


def test_json_has_no_nan_and_keeps_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"\xcd\xbc.png")
    write_json(str(tmp_path / "out.json"), {"a": [float("nan"), float("-inf"), 1.5], "name": name, "文": "字"})
    content = (tmp_path / "out.json").read_text(encoding="utf-8")
    found = json.loads(content, parse_constant=pytest.fail)
    assert found == {"a": [None, None, 1.5], "name": name, "文": "字"} and "文" in content


@pytest.mark.parametrize("inside", [False, True])
def test_the_error_of_a_second_writer_names_the_first(tmp_path, start, inside):
    path = str(tmp_path / "out")
    first = start(HOLD.replace("[1]", f"[1], inside={inside}"), path)
    with pytest.raises(ValueError, match=rf"out is being written by another run \(process {first.pid} on "):
        with sole_writer(path, inside):
            pytest.fail("held twice")
    first.kill()
    first.wait()
    with sole_writer(path, inside):
        pass
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


def test_a_users_file_with_the_name_of_the_lock_is_left_alone(tmp_path):
    (tmp_path / "_lock").write_text("mine")
    with pytest.raises(ValueError, match="_lock is not a lock of this program"), sole_writer(str(tmp_path), True):
        pytest.fail("held")
    assert (tmp_path / "_lock").read_text() == "mine"


def test_a_forked_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path, start):
    fork = "pid = os.fork(); pid and print('begun', flush=True); time.sleep(100)"
    first = start(f"with sole_writer(sys.argv[1]): {fork}", tmp_path / "out")
    child = int(subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout)
    first.kill()
    first.wait()
    try:
        with sole_writer(str(tmp_path / "out")):
            os.kill(child, 0)  # it is alive
    finally:
        os.kill(child, signal.SIGKILL)


def test_taking_a_lock_sweeps_the_folder(tmp_path, start):
    killed = start(WRITE, tmp_path / "out")
    killed.kill()
    killed.wait()
    with sole_writer(str(tmp_path / "out")):
        assert not [name for name in os.listdir(tmp_path) if is_temporary(name)]


def test_several_writers_may_make_one_folder_at_once(tmp_path):
    """The first ones find no folder of that name, and by the time they give it theirs there is one."""
    start = threading.Barrier(4)

    def make(writer: int) -> None:
        for number in range(50):
            start.wait(timeout=60)  # seconds: the others wait no longer when one has failed
            with new_folder(str(tmp_path / f"{number}")) as folder:
                Path(folder, "content").write_text(str(writer))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    assert sorted(os.listdir(tmp_path), key=int) == [str(number) for number in range(50)]
    assert all((tmp_path / f"{number}" / "content").read_text() in "0123" for number in range(50))
