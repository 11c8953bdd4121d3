"""Runs that are killed, interrupted or damaged, and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import transformers
from conftest import CAPTIONS, ENVIRONMENT, ROOT, python
from packaging.version import Version
from safetensors.torch import load_file

import train_clip
from component.argument import load_arguments
from component.lock import sole_writer
from component.training.resume import checkpoint_to_resume, checkpoints, remove_oldest

HANGING = 100  # seconds


@pytest.fixture
def run(train_args, monkeypatch):
    """Run train_clip.py in this process with these keys of the JSON; what it returns: None, or why it ended."""

    def run_main(**keys):
        args_file = train_args(**{"report_to": "none", **keys})
        monkeypatch.setattr(sys, "argv", ["train_clip.py", "--train_args_file", args_file])
        try:
            return train_clip.main()
        except ValueError as error:
            return f"train_clip.py: {error}"  # as component.command.run says it

    return run_main


@pytest.fixture
def start():
    """Start train_clip.py in a process of its own."""
    started = []

    def popen(args_file: str, processes: int = 1, **variables: str) -> subprocess.Popen:
        process = subprocess.Popen(
            python("train_clip.py", "--train_args_file", args_file, processes=processes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**ENVIRONMENT, **variables, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that a signal can be sent to its DataLoader workers too
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            process.communicate(timeout=HANGING)


def wait_for(path, process: subprocess.Popen) -> None:
    while not os.path.exists(path):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def wait_for_first_loss(process: subprocess.Popen) -> None:
    assert any("'loss'" in line for line in process.stdout), process.stderr.read()


def workers(launcher: subprocess.Popen) -> list[int]:
    output = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in output.split()]


def end(process: subprocess.Popen) -> str:
    """Wait until it ends; its stderr."""
    return process.communicate(timeout=HANGING)[1]


def read(*parts) -> dict:
    with open(os.path.join(*map(str, parts)), encoding="utf-8") as file:
        return json.load(file)


def losses(output) -> dict[int, float]:
    """Step → loss, of a run that logs every step."""
    return {
        entry["step"]: entry["loss"] for entry in read(output, "trainer_state.json")["log_history"] if "loss" in entry
    }


def assert_same_run(one, other) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=1e-6) and len(set(losses(one).values())) > 2
    weights, others = (load_file(path / "checkpoint-final" / "model.safetensors") for path in (one, other))
    for name, value in weights.items():
        assert (value - others[name]).abs().max() < 1e-6, name


def table(data, count: int, missing: int = 0) -> str:
    """So many rows; the first `missing` have no picture."""
    lines = [f"{CAPTIONS[n % 8] * (1 + n // 8 % 3)},{'no' if n < missing else ''}{n % 8}.png" for n in range(count)]
    (data / "t.csv").write_text("\n".join(["text,filename", *lines]) + "\n", encoding="utf-8")
    return str(data / "t.csv")


@pytest.mark.parametrize(
    "keys",
    [
        # In mid-epoch, of the only one: the bad pictures that came before the kill are not met again. Random pieces.
        dict(min_crop_area=0.3, random_flip=True, num_train_epochs=1, gradient_accumulation_steps=2, save_steps=3),
        # At the border of two epochs (of the 56 good pairs), with an evaluation there.
        dict(num_train_epochs=4, per_device_train_batch_size=8, save_steps=7, eval_strategy="epoch"),
    ],
)
def test_a_killed_run_goes_on_as_if_never_killed(run, start, train_args, data, tmp_path, keys):
    keys = {"per_device_train_batch_size": 2, "lr_scheduler_type": "cosine", "save_total_limit": 2, **keys}
    keys["train_file"] = table(data, 64, missing=8)
    keys["test_file"] = str(data / "train.csv") if "eval_strategy" in keys else None
    assert run(**keys, output_dir=str(tmp_path / "whole")) is None

    output, steps = tmp_path / "output", keys["save_steps"]
    killed = start(train_args(**keys, resume_from_checkpoint="auto"))
    wait_for(output / f"checkpoint-{steps}", killed)
    wait_for(output / "_unfinished" / f"checkpoint-{2 * steps}", killed)  # while it is written
    killed.kill()
    end(killed)
    assert not os.path.exists(output / "checkpoint-final")

    assert run(**keys, resume_from_checkpoint="auto") is None
    assert_same_run(output, tmp_path / "whole")
    assert read(output, "train_results.json")["train_bad_images"] == 8
    assert not os.path.exists(output / "_unfinished")
    assert len(checkpoints(str(output))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(run, start, train_args, data, tmp_path, number):
    keys = dict(train_file=table(data, 80), num_train_epochs=2, save_strategy="no", dataloader_num_workers=1)
    keys.update(min_crop_area=0.3, random_flip=True)
    process = start(train_args(**keys))
    wait_for_first_loss(process)
    os.killpg(process.pid, number)  # as Slurm, torchrun and Ctrl-C do: the DataLoader's workers get it too
    errors = end(process)
    assert process.returncode == 128 + number
    (checkpoint,) = checkpoints(str(tmp_path / "output"))
    assert f"interrupted by {number.name}: {os.path.basename(checkpoint)} is saved" in errors
    assert "Traceback" not in errors and not os.path.exists(tmp_path / "output" / "checkpoint-final")

    assert run(**keys, resume_from_checkpoint=True) is None
    assert run(**keys, output_dir=str(tmp_path / "whole")) is None
    assert_same_run(tmp_path / "output", tmp_path / "whole")


def test_two_runs_do_not_write_one_folder(run, tmp_path):
    with sole_writer(str(tmp_path / "output"), inside=True):
        assert "output is being written by another run (process" in run()
    assert not (tmp_path / "output").exists()


def test_a_second_signal_ends_the_run_at_once(start, train_args, tmp_path):
    process = start(train_args(num_train_epochs=1000, save_strategy="no"))
    wait_for_first_loss(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    errors = end(process)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Traceback" not in errors and not checkpoints(str(tmp_path / "output"))


def test_an_error_in_training_does_not_leave_it_hanging(start, train_args, data):
    keys = dict(eval_strategy="steps", eval_steps=1, metric_for_best_model="nonsense", dataloader_num_workers=1)
    process = start(train_args(**keys, train_file=table(data, 80), test_file=str(data / "train.csv")))
    assert "eval_nonsense" in end(process) and process.returncode == 1


def test_what_torchrun_passes_on_is_not_a_second_signal(start, train_args, tmp_path):
    process = start(train_args(num_train_epochs=1000, save_strategy="no"), TORCHELASTIC_RUN_ID="1")
    wait_for_first_loss(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert "is saved" in end(process) and len(checkpoints(str(tmp_path / "output"))) == 1


def test_two_processes_stop_after_the_same_step_and_go_on_as_if_never_stopped(start, train_args, data, tmp_path):
    keys = dict(
        train_file=table(data, 20, missing=1),
        per_device_train_batch_size=1,
        num_train_epochs=4,
        save_strategy="no",
        ddp_backend="gloo",
        min_crop_area=0.3,
    )
    process = start(train_args(**keys), processes=2)
    wait_for_first_loss(process)
    os.kill(workers(process)[1], signal.SIGTERM)  # one alone: the other must hear of it
    errors = end(process)
    (checkpoint,) = checkpoints(str(tmp_path / "output"))
    assert process.returncode != 0 and "interrupted by SIGTERM" in errors
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(checkpoint))
    if Version(transformers.__version__) < Version("5.23"):
        return  # cannot load an optimizer into several CPU processes
    for more in ({"resume_from_checkpoint": "auto"}, {"output_dir": str(tmp_path / "whole")}):
        process = start(train_args(**keys, **more), processes=2)
        errors = end(process)
        assert process.returncode == 0, errors
    assert_same_run(tmp_path / "output", tmp_path / "whole")
    assert read(tmp_path, "output", "train_results.json")["train_bad_images"] == 1


def test_a_lost_process_ends_the_run_and_another_number_of_processes_goes_on(
    run, start, train_args, data, tmp_path, caplog
):
    keys = dict(train_file=table(data, 800), num_train_epochs=50, per_device_train_batch_size=2, save_steps=5)
    process = start(train_args(**keys, ddp_backend="gloo", dataloader_num_workers=1), processes=2)
    wait_for(tmp_path / "output" / "checkpoint-5", process)
    os.kill(workers(process)[1], signal.SIGKILL)
    errors = end(process)
    assert process.returncode != 0 and "has lost another process of this run" in errors
    assert "forcefully" not in errors  # what torchrun says of a worker that it had to kill

    # The global batch was 2 × 2.
    keys.update(resume_from_checkpoint="auto", max_steps=1)
    error = run(**keys)
    assert "a global batch of 4 (world_size 2" in error and "one of 2 (world_size 1" in error
    assert error.endswith("Set per_device_train_batch_size to 4.")
    last = checkpoints(str(tmp_path / "output"))[-1]
    step = int(last.rpartition("-")[2])
    assert run(**{**keys, "per_device_train_batch_size": 4, "max_steps": step + 2}) is None
    assert "goes on with world_size 1" in caplog.text
    assert list(losses(tmp_path / "output"))[-2:] == [step + 1, step + 2]


def test_a_finished_run_started_again_takes_no_step_and_ends_well(run, data, tmp_path):
    keys = dict(max_steps=3, save_steps=3, test_file=str(data / "train.csv"), resume_from_checkpoint="auto")
    assert run(**keys) is None  # 3 steps: in the middle of the second epoch
    shutil.move(tmp_path / "output" / "checkpoint-final", tmp_path / "before" / "checkpoint-final")
    os.remove(tmp_path / "output" / "test_results.json")
    shutil.copy(tmp_path / "output" / "trainer_state.json", tmp_path / "before")
    assert run(**keys) is None
    assert read(tmp_path, "output", "trainer_state.json")["global_step"] == 3
    assert_same_run(tmp_path / "output", tmp_path / "before")
    assert read(tmp_path, "output", "test_results.json")["eval_pairs"] == 8


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def blank(path):
    """What a power failure can leave: the size, without the content."""
    size = os.path.getsize(path)
    os.truncate(path, 0)
    os.truncate(path, size)


@pytest.mark.parametrize("written_by", ["this version", "an older version"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", blank),
        ("optimizer.pt", truncate),
        ("optimizer.pt", blank),
        ("scheduler.pt", os.remove),
        ("trainer_state.json", truncate),
        ("resume.json", truncate),
    ],
)
def test_a_damaged_checkpoint_is_skipped_or_named(run, train_args, tmp_path, caplog, name, damage, written_by):
    if written_by == "an older version" and (damage is os.remove or name == "resume.json"):
        pytest.skip("an older version has no list of its files")
    assert run(max_steps=2, save_steps=1) is None
    good, damaged = checkpoints(str(tmp_path / "output"))
    if written_by == "an older version":
        os.remove(os.path.join(damaged, "resume.json"))
    damage(os.path.join(damaged, name))

    for resume in (True, "auto"):
        caplog.clear()
        assert checkpoint_to_resume(load_arguments(train_args(resume_from_checkpoint=resume))) == good
        assert f"{damaged} is damaged: {name}" in caplog.text
    error = run(resume_from_checkpoint=damaged)
    assert error.startswith(f"train_clip.py: {damaged} is damaged: {name}")


def test_a_model_alone_is_nothing_to_resume_from(run, tmp_path, caplog):
    assert run(max_steps=1, save_steps=1, save_only_model=True) is None
    assert "it has no trainer_state.json" in run(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-final"))
    assert "save_only_model was set" in run(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-1"))
    assert "there is no whole checkpoint" in run(resume_from_checkpoint=True)
    assert run(max_steps=2, resume_from_checkpoint="auto") is None
    assert list(losses(tmp_path / "output")) == [1, 2]


def test_the_best_checkpoint_is_named_and_kept(run, data, tmp_path):
    output = str(tmp_path / "output")
    keys = dict(num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", test_file=str(data / "train.csv"))
    # With a learning rate of 0, no later epoch is better than the first.
    assert run(**keys, learning_rate=0, load_best_model_at_end=True, save_total_limit=2) is None
    assert [os.path.basename(path) for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-6"]
    for path in (output, *checkpoints(output)):
        assert read(path, "trainer_state.json")["best_model_checkpoint"] == os.path.join(output, "checkpoint-2")


def test_what_was_saved_first_is_removed_first_and_never_the_final_model(tmp_path):
    for age, name in enumerate(["checkpoint-2", "checkpoint-9", "checkpoint-7", "checkpoint-final"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    remove_oldest(str(tmp_path), 2, keep={"checkpoint-7"})
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-7",
        "checkpoint-final",
    }
