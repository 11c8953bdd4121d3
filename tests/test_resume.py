"""Runs that are killed, interrupted or damaged, and then resumed."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import transformers
from conftest import CAPTIONS, ENVIRONMENT, ROOT, python, run_python, write_pairs
from packaging.version import Version
from safetensors.torch import load_file, save_file

from component.argument import load_arguments
from component.ground.files import write_json
from component.ground.lock import sole_writer
from component.trainer import CLIPTrainer
from component.training.checkpoint_files import naming_full_disk, remove_oldest
from component.training.checkpoint_files import saved_checkpoints as checkpoints
from component.training.resume import checkpoint_to_resume
from component.training.run_identity import table_identity

HANGING = 100  # seconds


@pytest.fixture
def run(train_here):
    """`train_here` that returns an error as its message."""

    def run_main(**keys):
        try:
            return train_here(**keys)
        except ValueError as error:
            return f"train_clip.py: {error}"  # as run_script prints it

    return run_main


@pytest.fixture
def start():
    """Start train_clip.py as a process."""
    started = []

    def popen(args_file: str, processes: int = 1, **variables: str) -> subprocess.Popen:
        process = subprocess.Popen(
            python("train_clip.py", "--train_args_file", args_file, processes=processes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**ENVIRONMENT, **variables, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that its DataLoader workers can be signalled too
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
    curves, others = (pd.read_csv(path / "training.csv") for path in (one, other))
    steady = ["step", "epoch", "loss", "learning_rate", *(name for name in curves if "recall" in name)]
    pd.testing.assert_frame_equal(curves[steady], others[steady], atol=1e-6)


def table(data, count: int, missing: int = 0) -> str:
    """A table of `count` rows; the first `missing` of them have no image."""
    names = (f"{'no' if n < missing else ''}{n % 8}.png" for n in range(count))
    return write_pairs(data, *(f"{CAPTIONS[n % 8] * (1 + n // 8 % 3)},{name}" for n, name in enumerate(names)))


@pytest.mark.parametrize(
    "keys",
    [
        # In the middle of the only epoch, with random crops: bad images counted before the kill are not seen again.
        dict(min_crop_area=0.3, random_flip=True, num_train_epochs=1, gradient_accumulation_steps=2, save_steps=3),
        # At the border of two epochs of 56 good pairs, with an evaluation there, and with random changes of the texts
        # in a batch that passes through the towers in chunks.
        dict(
            num_train_epochs=4,
            per_device_train_batch_size=8,
            save_steps=7,
            eval_strategy="epoch",
            text_templates=["一只{}", "{}在摇尾巴"],
            text_noise=0.5,
            loss_type="siglip",
            matryoshka_dims=[8, 2],
            contrastive_chunk_size=3,
        ),
    ],
)
def test_a_killed_run_resumes_as_if_it_had_not_been_killed(run, start, train_args, data, tmp_path, keys):
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
    os.killpg(process.pid, number)  # as Slurm, torchrun and a terminal do: DataLoader workers get it too
    errors = end(process)
    assert process.returncode == 128 + number
    (checkpoint,) = checkpoints(str(tmp_path / "output"))
    assert f"interrupted by {number.name}: {os.path.basename(checkpoint)} is saved" in errors
    assert "Traceback" not in errors and not os.path.exists(tmp_path / "output" / "checkpoint-final")

    assert run(**keys, resume_from_checkpoint=True) is None
    assert run(**keys, output_dir=str(tmp_path / "whole")) is None
    assert_same_run(tmp_path / "output", tmp_path / "whole")


def test_a_run_whose_terminal_is_closed_saves_and_stops(start, train_args, tmp_path):
    process = start(train_args(num_train_epochs=1000, save_strategy="no", dataloader_num_workers=1))
    wait_for_first_loss(process)
    process.stdout.close()
    process.stderr.close()
    for _ in range(2):  # one by the shell, one by the kernel
        os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(HANGING) == 128 + signal.SIGHUP
    assert len(checkpoints(str(tmp_path / "output"))) == 1
    assert not (tmp_path / "output" / "_lock").exists()


def test_a_reporter_that_fails_does_not_end_the_run(trainer, tmp_path, monkeypatch, caplog):
    trainer = trainer(max_steps=3, save_strategy="steps", save_steps=3)
    with open(os.devnull) as unwritable:  # opened for reading
        monkeypatch.setattr(sys, "stdout", unwritable)
        trainer.train()
        monkeypatch.undo()
    assert len(checkpoints(str(tmp_path / "output"))) == 1
    assert caplog.text.count("PrinterCallback failed (UnsupportedOperation") == 1


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


def test_a_signal_passed_on_by_torchrun_is_not_a_second_signal(start, train_args, tmp_path):
    process = start(train_args(num_train_epochs=1000, save_strategy="no"), TORCHELASTIC_RUN_ID="1")
    wait_for_first_loss(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert "is saved" in end(process) and len(checkpoints(str(tmp_path / "output"))) == 1


def test_two_processes_stop_after_the_same_step_and_resume_as_if_they_had_not(start, train_args, data, tmp_path):
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
    os.kill(workers(process)[1], signal.SIGTERM)  # only one: the other must learn of it
    errors = end(process)
    (checkpoint,) = checkpoints(str(tmp_path / "output"))
    assert process.returncode != 0 and "interrupted by SIGTERM" in errors
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(checkpoint))
    if Version(transformers.__version__) < Version("5.23"):
        return  # cannot load an optimizer into several CPU processes
    for more in ({"resume_from_checkpoint": "auto"}, {"output_dir": str(tmp_path / "whole")}):
        done = run_python("train_clip.py", "--train_args_file", train_args(**keys, **more), processes=2)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "output", tmp_path / "whole")
    assert read(tmp_path, "output", "train_results.json")["train_bad_images"] == 1


def test_a_lost_process_ends_the_run_and_another_number_of_processes_resumes_it(
    run, start, train_args, data, tmp_path, caplog
):
    keys = dict(train_file=table(data, 800), num_train_epochs=50, per_device_train_batch_size=2, save_steps=5)
    process = start(train_args(**keys, ddp_backend="gloo", dataloader_num_workers=1), processes=2)
    wait_for(tmp_path / "output" / "checkpoint-5", process)
    os.kill(workers(process)[1], signal.SIGKILL)
    errors = end(process)
    assert process.returncode != 0 and "has lost another process of this run" in errors
    assert "forcefully" not in errors  # what torchrun prints of a worker that it had to kill

    # The global batch was 2 × 2.
    keys.update(resume_from_checkpoint="auto", max_steps=1)
    error = run(**keys)
    assert "a global batch of 4 (world_size 2" in error and "one of 2 (world_size 1" in error
    assert error.endswith("Set per_device_train_batch_size to 4.")
    last = checkpoints(str(tmp_path / "output"))[-1]
    step = int(last.rpartition("-")[2])
    assert run(**{**keys, "per_device_train_batch_size": 4, "max_steps": step + 2}) is None
    assert "continues with world_size 1" in caplog.text
    assert list(losses(tmp_path / "output"))[-2:] == [step + 1, step + 2]


CANNOT_BEGIN = """
import sys
sys.path.insert(0, {root!r})
import train_clip
from component.argument import load_arguments
from component.training.interruption import leave_group

try:
    train_clip.train(load_arguments({args_file!r}))
except OSError as error:
    print("STOPPED", error, flush=True)
leave_group()
"""


def test_all_processes_stop_with_the_error_of_the_first_one(train_args, tmp_path):
    (tmp_path / "output" / "run.json").mkdir(parents=True)  # a file cannot take the place of a folder
    script = tmp_path / "cannot_begin.py"
    script.write_text(CANNOT_BEGIN.format(root=ROOT, args_file=train_args(ddp_backend="gloo")))
    result = run_python(script, processes=2)
    assert result.returncode == 0, result.stderr
    assert len(re.findall("STOPPED .*run.json", result.stdout)) == 2


def test_a_finished_run_started_again_takes_no_step_and_exits_normally(run, data, tmp_path):
    keys = dict(max_steps=3, save_steps=3, test_file=str(data / "train.csv"), resume_from_checkpoint="auto")
    assert run(**keys) is None  # 3 steps: in the middle of the second epoch
    shutil.move(tmp_path / "output" / "checkpoint-final", tmp_path / "before" / "checkpoint-final")
    os.remove(tmp_path / "output" / "test_results.json")
    for name in ("trainer_state.json", "training.csv"):
        shutil.copy(tmp_path / "output" / name, tmp_path / "before")
    assert run(**keys) is None
    assert read(tmp_path, "output", "trainer_state.json")["global_step"] == 3
    assert_same_run(tmp_path / "output", tmp_path / "before")
    assert read(tmp_path, "output", "test_results.json")["eval_pairs"] == 8


def test_a_finished_run_started_again_keeps_its_results(run, data, tmp_path):
    keys = dict(max_steps=2, save_steps=2, resume_from_checkpoint="auto")
    assert run(**keys) is None
    before = read(tmp_path, "output", "train_results.json")
    assert before["train_loss"] > 0
    assert run(**keys, test_file=str(data / "train.csv")) is None
    assert read(tmp_path, "output", "train_results.json") == before
    assert run(**{**keys, "max_steps": 3, "lr_scheduler_type": "linear"}) is None
    assert read(tmp_path, "output", "train_results.json")["train_loss"] != before["train_loss"]
    assert not os.path.exists(tmp_path / "output" / "test_results.json")  # it was measured on other weights


ENDS = [
    {"save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1},
    {"save_strategy": "best", "metric_for_best_model": "loss"},
    {"save_strategy": "no"},
    {"save_only_model": True},
]


@pytest.mark.parametrize("keys", ENDS, ids=["limit of one", "best", "no checkpoint", "model only"])
def test_a_finished_run_is_recognised_whatever_it_saved(run, data, tmp_path, keys):
    # With a learning rate of 0, the first evaluation is the best.
    keys = dict(keys, learning_rate=0, eval_strategy="epoch", test_file=str(data / "train.csv"))
    assert run(**keys) is None
    before = read(tmp_path, "output", "train_results.json"), read(tmp_path, "output", "trainer_state.json")
    assert run(**keys, resume_from_checkpoint="auto") is None
    after = read(tmp_path, "output", "train_results.json"), read(tmp_path, "output", "trainer_state.json")
    assert before[0] == after[0]
    for key in ("global_step", "best_global_step", "best_model_checkpoint"):
        assert before[1][key] == after[1][key]


OTHER_RECIPES = [
    ({"learning_rate": 0.5}, "learning_rate was 0.001, is 0.5"),
    ({"weight_decay": 0.1}, "weight_decay was 0.0, is 0.1"),
    ({"lr_scheduler_type": "cosine"}, 'lr_scheduler_type was "linear", is "cosine"'),
    ({"warmup_ratio": 0.5}, "warmup_steps was 0, is 0.5"),
    ({"loss_type": "siglip"}, 'loss_type was "clip", is "siglip"'),
    ({"random_flip": True}, "random_flip was false, is true"),
    ({"freeze_vision": False}, "freeze_vision was true, is false"),
    ({"seed": 1}, "seed was 42, is 1"),
    ({"max_seq_length": 9, "adam_beta2": 0.9}, "max_seq_length was 16, is 9; adam_beta2 was 0.999, is 0.9"),
]
OTHER_SURROUNDINGS = [
    {"logging_steps": 7, "save_steps": 3, "save_total_limit": 1, "dataloader_num_workers": 1},
    {"eval_strategy": "epoch", "test_file": "train.csv", "image_feature_cache": "off", "optim": "adamw_torch"},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "contrastive_chunk_size": 1},
]


def test_another_recipe_is_refused_with_what_changed(train_args, checkpoint_1):
    for keys, said in OTHER_RECIPES:
        for resume in ("auto", True, checkpoint_1):
            with pytest.raises(ValueError, match="was trained with another recipe.*output_dir of its own") as error:
                checkpoint_to_resume(load_arguments(train_args(**keys, resume_from_checkpoint=resume)))
            assert said in str(error.value) and "\n" not in str(error.value)


def test_keys_that_do_not_shape_the_training_may_change(train_args, data, checkpoint_1, monkeypatch):
    monkeypatch.chdir(data)
    for keys in OTHER_SURROUNDINGS:
        args = load_arguments(train_args(**keys, resume_from_checkpoint="auto"))
        assert checkpoint_to_resume(args) == checkpoint_1


def test_steps_between_logs_and_checkpoints_may_change(run, tmp_path, checkpoint_1):
    assert run(num_train_epochs=4, save_steps=3, logging_steps=4, resume_from_checkpoint="auto") is None
    saved = [os.path.basename(path) for path in checkpoints(str(tmp_path / "output"))]
    assert saved == ["checkpoint-1", "checkpoint-3", "checkpoint-6", "checkpoint-8"]
    assert list(losses(tmp_path / "output")) == [1, 4, 8]


def test_another_length_is_allowed_with_a_warning_if_the_learning_rate_depends_on_it(train_args, checkpoint_1, caplog):
    args = load_arguments(train_args(num_train_epochs=9, resume_from_checkpoint="auto"))
    assert checkpoint_to_resume(args) == checkpoint_1
    assert (
        "num_train_epochs was 2.0, is 9.0. The learning rate continues with the value that lr_scheduler_type linear"
        in caplog.text
    )


def test_data_may_move_but_not_change(train_args, data, tmp_path, checkpoint_1):
    shutil.copytree(data, tmp_path / "moved")
    args = load_arguments(train_args(train_file=str(tmp_path / "moved" / "train.csv"), resume_from_checkpoint="auto"))
    assert checkpoint_to_resume(args) == checkpoint_1
    table = tmp_path / "moved" / "train.csv"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    for changed in ([*rows, "小狗,,0.png"], rows[::-1]):
        table.write_text("\n".join([header, *changed]) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match="train_file was .*train.csv, .* is .*train.csv, "):
            checkpoint_to_resume(args)


def test_the_digest_of_a_table_is_kept_while_its_file_is_the_same(data):
    state, identity = table_identity(str(data / "train.csv"))
    assert table_identity(str(data / "train.csv"), (state, "kept")) == (state, "kept")
    before = (data / "train.csv").stat()
    (data / "train.csv").write_bytes((data / "train.csv").read_bytes()[::-1])
    os.utime(data / "train.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed, other = table_identity(str(data / "train.csv"), (state, "kept"))
    assert changed != state and other not in (identity, "kept")


def test_a_run_started_from_another_model_is_refused_with_the_difference(run, tmp_path, clip_path, bert_path):
    folders = {"clip_pretrain_path": clip_path, "bert_pretrain_path": bert_path}
    keys = {key: str(shutil.copytree(path, tmp_path / key)) for key, path in folders.items()}
    keys.update(max_steps=1, save_steps=1, resume_from_checkpoint="auto")
    assert run(**keys) is None
    config = read(keys["clip_pretrain_path"], "config.json")
    config["vision_config"]["hidden_act"] = "relu"
    write_json(os.path.join(keys["clip_pretrain_path"], "config.json"), config)
    weights = load_file(os.path.join(keys["bert_pretrain_path"], "model.safetensors"))
    weights["encoder.layer.0.output.dense.bias"] += 1
    save_file(weights, os.path.join(keys["bert_pretrain_path"], "model.safetensors"), {"format": "pt"})
    error = run(**keys, max_seq_length=16)
    assert "was started from another model" in error and "checkpoint-1" in error
    assert "hidden_act" in error and "the weights of the text half" in error and "image half" not in error


def test_a_checkpoint_of_an_older_version_is_resumed_with_a_warning(train_args, tmp_path, checkpoint_1, caplog):
    os.remove(os.path.join(checkpoint_1, "resume.json"))
    os.remove(tmp_path / "output" / "run.json")
    args = load_arguments(train_args(learning_rate=0.5, resume_from_checkpoint="auto"))
    assert checkpoint_to_resume(args) == checkpoint_1
    assert "its recipe is unknown and cannot be compared" in caplog.text
    assert "shuffled the pairs differently" in caplog.text


def test_a_checkpoint_with_the_older_order_is_resumed_with_a_warning(train_args, checkpoint_1, caplog):
    """Written by a version that recorded recipes, and shuffled differently."""
    args = load_arguments(train_args(resume_from_checkpoint="auto"))
    checkpoint_to_resume(args)
    assert "shuffled" not in caplog.text
    path = os.path.join(checkpoint_1, "resume.json")
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    del record["run"]["recipe"]["order"]
    write_json(path, record)
    assert checkpoint_to_resume(args) == checkpoint_1
    assert "shuffled the pairs differently: the rest of this epoch follows the new order" in caplog.text


@pytest.fixture
def checkpoint_1(run, tmp_path) -> str:
    """The first checkpoint of a finished run of two epochs (four steps); the others are removed."""
    assert run(save_steps=1, num_train_epochs=2, save_total_limit=4) is None
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "output" / f"checkpoint-{step}")
    return str(tmp_path / "output" / "checkpoint-1")


@pytest.mark.parametrize("resume", [None, False, "elsewhere"])
def test_a_new_run_does_not_mix_with_another(run, tmp_path, checkpoint_1, caplog, resume):
    """The next start would take the other run's checkpoints, which have higher steps, for its own."""
    (tmp_path / "output" / "notes.txt").touch()
    (tmp_path / "output" / "checkpoint-5").mkdir()  # a checkpoint by its name only
    if resume == "elsewhere":
        resume = str(shutil.copytree(checkpoint_1, tmp_path / "elsewhere" / "checkpoint-1"))
    keys = dict(num_train_epochs=2, save_steps=4, resume_from_checkpoint=resume)
    error = run(**keys)
    assert "already contains a run (checkpoint-final)" in error and "overwrite_output_dir" in error
    assert run(**keys, overwrite_output_dir=True) is None
    assert "removes from" in caplog.text and "checkpoint-1, checkpoint-final, train_results.json" in caplog.text
    assert [os.path.basename(path) for path in checkpoints(str(tmp_path / "output"))] == ["checkpoint-4"]
    assert (tmp_path / "output" / "notes.txt").exists() and (tmp_path / "output" / "checkpoint-5").exists()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_another_run_does_not_overwrite_a_final_model(run, tmp_path, resume):
    """Such as the demo, which saves no other checkpoint."""
    assert run(save_strategy="no", max_steps=1) is None
    other = dict(save_strategy="no", max_steps=1, learning_rate=0.5)
    assert "already contains a run (checkpoint-final)" in run(**other, resume_from_checkpoint=resume)
    assert run(**other, resume_from_checkpoint=resume, overwrite_output_dir=True) is None


def test_a_run_that_ended_between_the_final_model_and_its_results_is_repeated(run, tmp_path):
    keys = dict(save_strategy="no", max_steps=1)
    assert run(**keys) is None
    record = read(tmp_path, "output", "run.json")
    (tmp_path / "output" / "run.json").write_text(json.dumps({**record, "finished": None}))
    assert run(**keys, resume_from_checkpoint="auto") is None
    assert read(tmp_path, "output", "run.json")["finished"] == 1


def test_auto_resumes_only_the_run_that_the_folder_belongs_to(train_args, tmp_path, checkpoint_1):
    foreign = read(checkpoint_1, "resume.json")
    foreign["run"]["id"] = "another"
    higher = shutil.copytree(checkpoint_1, tmp_path / "output" / "checkpoint-9")
    state = read(higher, "trainer_state.json")
    (higher / "trainer_state.json").write_text(json.dumps({**state, "global_step": 9}))
    foreign["files"].pop("trainer_state.json"), foreign["checksums"].pop("trainer_state.json")
    (higher / "resume.json").write_text(json.dumps(foreign))
    args = load_arguments(train_args(resume_from_checkpoint="auto"))
    assert checkpoint_to_resume(args) == checkpoint_1

    shutil.rmtree(checkpoint_1)
    with pytest.raises(ValueError, match="already contains a run .checkpoint-final"):
        checkpoint_to_resume(args)


def test_the_batch_size_that_was_found_is_recorded_and_used_on_resume(run, tmp_path, monkeypatch, caplog):
    compute_loss = CLIPTrainer.compute_loss

    def on_a_small_card(self, model, inputs, *args, **kwargs):
        if len(inputs["rows"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CLIPTrainer, "compute_loss", on_a_small_card)
    keys = dict(per_device_train_batch_size=8, auto_find_batch_size=True, save_steps=2, resume_from_checkpoint="auto")
    assert run(**keys, max_steps=2) is None
    found = read(tmp_path, "output", "train_args.json")["per_device_train_batch_size"]
    assert found <= 2
    assert read(tmp_path, "output", "checkpoint-2", "resume.json")["batch"]["per_device_train_batch_size"] == found
    assert run(**keys, max_steps=4) is None
    assert list(losses(tmp_path / "output")) == [1, 2, 3, 4]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_whole(run, tmp_path, checkpoint_1):
    """Simulated by a limit on file sizes that tables stay below and weights exceed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="nothing more can be saved in .*Make room") as error:
            run(resume_from_checkpoint="auto", save_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert [os.path.basename(path) for path in checkpoints(str(tmp_path / "output"))] == ["checkpoint-1"]
    assert not (tmp_path / "output" / "_unfinished").exists()
    assert run(resume_from_checkpoint="auto") is None


@pytest.mark.parametrize("write", [torch.save, lambda content, path: save_file(content, path)])
def test_a_full_disk_is_recognised_in_the_error_of_each_library(tmp_path, write):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="nothing more can be saved"), naming_full_disk(str(tmp_path)):
            write({"weight": torch.ones(100_000)}, str(tmp_path / "file"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def blank_middle(path):
    with open(path, "rb+") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(bytes(64))


def no_object(path):
    with open(path, "w") as file:
        file.write("[1]")


def empty_object(path):
    with open(path, "w") as file:
        file.write("{}")


def of_another_type(path):
    with open(path, "w") as file:
        file.write('{"files": {"model.safetensors": "many"}, "run": 7}')


def blank(path):
    """What a power failure can leave: the right size without the content."""
    size = os.path.getsize(path)
    os.truncate(path, 0)
    os.truncate(path, size)


def unknown_compression(path):
    with open(path, "rb+") as file:
        file.seek(file.read().index(b"PK\1\2") + 10)  # of the first entry in the directory of a zip
        file.write(b"\x63\0")


WITHOUT_CHECKSUMS = [
    ("scheduler.pt", os.remove),
    ("model.safetensors", blank_middle),
    *[("resume.json", damage) for damage in (truncate, no_object, of_another_type)],
]


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
        ("resume.json", no_object),
        ("resume.json", of_another_type),
        ("trainer_state.json", empty_object),
        ("trainer_state.json", no_object),
        ("model.safetensors", blank_middle),
        ("optimizer.pt", blank_middle),
        ("rng_state.pth", truncate),
        ("rng_state.pth", unknown_compression),
    ],
)
def test_a_damaged_checkpoint_is_skipped_or_named(run, train_args, tmp_path, caplog, name, damage, written_by):
    if written_by == "an older version" and (name, damage) in WITHOUT_CHECKSUMS:
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


def test_an_epoch_without_a_step_is_refused_before_anything_is_written(run, tmp_path):
    error = run(dataloader_drop_last=True, per_device_train_batch_size=9)
    assert "leaves no step in an epoch: there are 8 pairs, fewer than a batch of 9" in error
    assert not (tmp_path / "output" / "run.json").exists()


@pytest.mark.parametrize("keys", [{"num_train_epochs": 1e-9}, {"num_train_epochs": 0.4}])
def test_a_training_of_less_than_one_step_is_refused(run, keys):
    assert "which is less than one step: an epoch has 2. Raise it, or set max_steps to 1" in run(**keys)


def test_half_an_epoch_of_two_steps_is_one_step(run, tmp_path):
    assert run(num_train_epochs=0.5) is None
    assert list(losses(tmp_path / "output")) == [1]


def test_a_model_without_training_state_cannot_be_resumed(run, tmp_path, caplog):
    assert run(max_steps=1, save_steps=1, save_only_model=True) is None
    assert "it has no trainer_state.json" in run(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-final"))
    assert "save_only_model was set" in run(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-1"))
    assert "there is no whole checkpoint" in run(resume_from_checkpoint=True)
    assert "already contains a run" in run(max_steps=2, resume_from_checkpoint="auto")
    assert run(max_steps=2, resume_from_checkpoint="auto", overwrite_output_dir=True) is None
    assert list(losses(tmp_path / "output")) == [1, 2]


EVALUATED = dict(num_train_epochs=9, eval_strategy="epoch", metric_for_best_model="loss", early_stopping_patience=2)


@pytest.mark.parametrize("keys", [{"save_strategy": "no"}, {"save_strategy": "epoch", "load_best_model_at_end": True}])
def test_a_run_that_stops_improving_stops_with_a_message(run, data, tmp_path, caplog, keys):
    # With a learning rate of 0, no later epoch of 2 steps is better than the first.
    assert run(**EVALUATED, **keys, learning_rate=0, test_file=str(data / "train.csv")) is None
    assert list(losses(tmp_path / "output"))[-1] == 6 and read(tmp_path / "output", "test_results.json")
    assert re.search(r"early at step 6: eval_loss was [\d.]+ at step 2 and did not improve in 2 eval", caplog.text)
    said = "checkpoint-final will contain the last weights, not the best" in caplog.text
    assert said == ("load_best_model_at_end" not in keys)


def test_a_run_that_improves_does_not_stop_early(run, data, tmp_path):
    assert run(**EVALUATED, learning_rate=1e-4, test_file=str(data / "train.csv")) is None
    assert list(losses(tmp_path / "output"))[-1] == 18


def test_early_stopping_happens_at_the_same_step_in_a_resumed_run(run, data, tmp_path):
    output, keys = tmp_path / "output", dict(learning_rate=0, test_file=str(data / "train.csv"), save_steps=4)
    assert run(**EVALUATED, **keys) is None
    assert [os.path.basename(path) for path in checkpoints(str(output))] == ["checkpoint-4", "checkpoint-6"]
    before = read(output, "train_results.json")
    assert run(**EVALUATED, **keys, resume_from_checkpoint="auto") is None
    assert list(losses(output))[-1] == 6 and read(output, "train_results.json") == before
    shutil.rmtree(output / "checkpoint-6")
    assert run(**EVALUATED, **keys, resume_from_checkpoint="auto") is None
    assert list(losses(output)) == [1, 2, 3, 4, 5, 6]


def test_the_best_checkpoint_is_named_and_kept(run, data, tmp_path):
    output = str(tmp_path / "output")
    keys = dict(num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", test_file=str(data / "train.csv"))
    # With a learning rate of 0, no later epoch is better than the first.
    assert run(**keys, learning_rate=0, load_best_model_at_end=True, save_total_limit=2) is None
    assert [os.path.basename(path) for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-6"]
    for path in (output, *checkpoints(output)):
        assert read(path, "trainer_state.json")["best_model_checkpoint"] == "checkpoint-2"  # in output_dir


def test_the_best_of_a_resumed_run_is_found_by_todays_metric_in_todays_folder(run, data, tmp_path):
    keys = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, learning_rate=0.01)
    keys.update(test_file=str(data / "train.csv"), lr_scheduler_type="constant", image_feature_cache="off")
    assert run(**keys, num_train_epochs=3) is None  # by loss
    moved = shutil.move(tmp_path / "output", tmp_path / "moved")
    metric = "text_to_image_median_rank"  # 4 or more here, above any of the losses
    keys.update(metric_for_best_model=metric, output_dir=str(moved), save_total_limit=1, num_train_epochs=5)
    assert run(**keys, resume_from_checkpoint="auto") is None
    state = read(moved, "trainer_state.json")
    ranks = {entry["step"]: entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry}
    assert len(ranks) >= 5
    assert state["best_metric"] == min(ranks.values()) == ranks[state["best_global_step"]]
    best = moved / state["best_model_checkpoint"]
    final = load_file(moved / "checkpoint-final" / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in load_file(best / "model.safetensors").items())
    kept = {os.path.basename(path) for path in checkpoints(str(moved))}
    assert kept == {best.name, "checkpoint-10"}


def test_the_best_of_another_test_set_is_refused(run, data, tmp_path):
    keys = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, num_train_epochs=1)
    assert run(**keys, test_file=table(data, 8)) is None
    keys.update(num_train_epochs=2, test_file=table(data, 12), resume_from_checkpoint="auto")
    error = run(**keys)
    assert "measured loss on t.csv" in error and "but test_file is now t.csv" in error
    assert run(**{**keys, "load_best_model_at_end": False}) is None


def test_rotation_goes_by_step_not_by_time_and_never_removes_the_final_model(tmp_path):
    for age, name in enumerate(["checkpoint-2", "checkpoint-9", "checkpoint-7", "checkpoint-8", "checkpoint-final"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        os.utime(tmp_path / name, (100 - age, 100 - age))
    (tmp_path / "checkpoint-2" / "resume.json").write_text('{"run": {"id": "of another run"}}')
    remove_oldest(str(tmp_path), 2, keep={"checkpoint-7"})
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-7",
        "checkpoint-9",
        "checkpoint-final",
    }


def test_results_and_state_are_written_atomically(run, tmp_path, monkeypatch):
    """A reader finds the old files until the new ones are complete."""
    keys = dict(max_steps=2, save_steps=2, resume_from_checkpoint="auto")
    assert run(**keys) is None
    before = (tmp_path / "output" / "trainer_state.json").read_text()
    sizes = []
    replace = os.replace

    def look(new, final):
        sizes.append((os.path.basename(final), (tmp_path / "output" / "trainer_state.json").read_text() == before))
        replace(new, final)

    monkeypatch.setattr(os, "replace", look)
    assert run(**keys) is None
    assert ("trainer_state.json", True) in sizes
