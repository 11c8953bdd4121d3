"""How a training shows how it goes: its curves, its warnings, and the look at the data before it."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image
from transformers import TrainerState

import train_clip
from component.report.curves import draw_training
from component.training.curves import WriteCurves, curves


@pytest.fixture
def run(train_args, monkeypatch):
    """Run train_clip.py in this process with these keys of the JSON."""

    def run_main(**keys):
        args_file = train_args(**{"report_to": "none", "save_strategy": "no", **keys})
        monkeypatch.setattr(sys, "argv", ["train_clip.py", "--train_args_file", args_file])
        assert train_clip.main() is None

    return run_main


# ---- curves ----


def test_a_run_leaves_its_curves_as_a_table_and_a_picture(run, data, tmp_path):
    run(test_file=str(data / "train.csv"), eval_strategy="epoch", num_train_epochs=3, logging_steps=4)
    table = pd.read_csv(tmp_path / "output" / "training.csv")
    assert table["step"].tolist() == [2, 4, 6]  # evaluated, both, and the rest behind the last log
    assert table["loss"].notna().tolist() == [False, True, True]
    assert table["eval_mean_recall"].notna().all() and table["data_wait"].dropna().between(0, 1).all()
    assert {"ln_batch", "learning_rate", "logit_scale", "pairs_per_second", "text_cosine"} <= set(table)
    with Image.open(tmp_path / "output" / "training.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_a_run_shorter_than_its_first_log_has_curves_too(run, tmp_path):
    run(logging_steps=500, max_steps=1)
    table = pd.read_csv(tmp_path / "output" / "training.csv")
    assert table["step"].tolist() == [1] and table["loss"].notna().all()


def test_without_matplotlib_a_line_says_so_once_and_the_table_is_there(run, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(test_file=str(data / "train.csv"), eval_strategy="epoch")
    assert caplog.text.count("training.png is not drawn") == 1 and "pip install matplotlib" in caplog.text
    assert len(pd.read_csv(tmp_path / "output" / "training.csv")) == 4
    assert not (tmp_path / "output" / "training.png").exists()


def test_figures_of_the_best_weights_do_not_stand_at_the_last_step(run, data, tmp_path):
    keys = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=3)
    best = dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    run(test_file=str(data / "train.csv"), **keys, **best)
    losses = pd.read_csv(tmp_path / "output" / "training.csv")["eval_loss"]
    assert losses.iloc[-1] < losses.max()


def test_a_new_run_in_the_same_folder_begins_new_curves(run, tmp_path):
    run(max_steps=3)
    run(max_steps=2, overwrite_output_dir=True)
    assert pd.read_csv(tmp_path / "output" / "training.csv")["step"].tolist() == [1, 2]


def test_a_disk_that_takes_no_curves_is_said_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "output").write_text("no folder")
    state = TrainerState(log_history=[{"step": 1, "loss": 1.0}])
    WriteCurves(draw_training).write(SimpleNamespace(output_dir=str(tmp_path / "output")), state)
    assert "the curves of the run cannot be written" in caplog.text


def test_curves_that_someone_changed_stop_no_run_that_goes_on(run, tmp_path, caplog):
    run(max_steps=1, save_strategy="steps", save_steps=1)
    (tmp_path / "output" / "training.csv").write_text("step,loss\n1,what\n")
    run(max_steps=2, resume_from_checkpoint="auto")
    assert "the curves begin anew" in caplog.text
    assert pd.read_csv(tmp_path / "output" / "training.csv")["step"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 1, "loss": 1.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": None}],
        [{"step": 5, "eval_text_to_image_recall@1": 0.5}],
    ],
)
def test_a_picture_is_drawn_of_what_there_is(history, tmp_path):
    draw_training(str(tmp_path / "a.png"), curves(history))
    assert (tmp_path / "a.png").stat().st_size > 0
