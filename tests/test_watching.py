"""What a run reports: curves, warnings, and the data check before it."""

import html
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import CAPTIONS, ROOT, write_pairs
from matplotlib.text import Text
from PIL import Image
from transformers import TrainerState

from component.argument import load_arguments
from component.dataset import PairDataset
from component.image.reading import SINCE_INDEXED
from component.model import BertCLIPModel
from component.processor import load_processor
from component.report.curves import draw_training
from component.report.data_check import REASONS
from component.report.figures import load_pyplot
from component.training.check_data import check_data
from component.training.curves import WriteCurves, curves
from component.training.data import load_datasets
from component.training.survey import survey_texts


@pytest.fixture
def run(train_here):
    """`train_here` without checkpoints; it has to succeed."""

    def run_main(**keys):
        assert train_here(**{"save_strategy": "no", **keys}) is None

    return run_main


# ---- curves ----


def test_a_run_writes_its_curves_as_csv_and_png(run, data, tmp_path):
    run(test_file=str(data / "train.csv"), eval_strategy="epoch", num_train_epochs=3, logging_steps=4)
    table = pd.read_csv(tmp_path / "output" / "training.csv")
    assert table["step"].tolist() == [2, 4, 6]  # evaluation, both, and the steps since the last log
    assert table["loss"].notna().tolist() == [False, True, True]
    assert table["eval_mean_recall"].notna().all() and table["data_wait"].dropna().between(0, 1).all()
    assert {"ln_batch", "learning_rate", "logit_scale", "pairs_per_second", "text_cosine"} <= set(table)
    with Image.open(tmp_path / "output" / "training.png") as image:
        assert image.format == "PNG" and image.width > 1000


def test_a_run_shorter_than_logging_steps_has_curves(run, tmp_path):
    run(logging_steps=500, max_steps=1)
    table = pd.read_csv(tmp_path / "output" / "training.csv")
    assert table["step"].tolist() == [1] and table["loss"].notna().all()


def test_without_matplotlib_one_line_says_so_and_the_csv_is_written(run, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(test_file=str(data / "train.csv"), eval_strategy="epoch")
    assert caplog.text.count("training.png is not drawn") == 1 and "pip install matplotlib" in caplog.text
    assert len(pd.read_csv(tmp_path / "output" / "training.csv")) == 4
    assert not (tmp_path / "output" / "training.png").exists()


def test_figures_of_the_best_weights_are_not_shown_at_the_last_step(run, data, tmp_path):
    keys = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=3)
    best = dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    run(test_file=str(data / "train.csv"), **keys, **best)
    losses = pd.read_csv(tmp_path / "output" / "training.csv")["eval_loss"]
    assert losses.iloc[-1] < losses.max()


def test_a_new_run_in_the_same_folder_starts_new_curves(run, tmp_path):
    run(max_steps=3)
    run(max_steps=2, overwrite_output_dir=True)
    assert pd.read_csv(tmp_path / "output" / "training.csv")["step"].tolist() == [1, 2]


def test_curves_that_cannot_be_written_are_a_warning(tmp_path, caplog):
    (tmp_path / "output").write_text("no folder")
    state = TrainerState(log_history=[{"step": 1, "loss": 1.0}])
    WriteCurves(draw_training).write(SimpleNamespace(output_dir=str(tmp_path / "output")), state)
    assert "the curves of the run cannot be written" in caplog.text


def test_a_damaged_training_csv_does_not_stop_a_resumed_run(run, tmp_path, caplog):
    run(max_steps=1, save_strategy="steps", save_steps=1)
    (tmp_path / "output" / "training.csv").write_text("step,loss\n1,what\n")
    run(max_steps=2, resume_from_checkpoint="auto")
    assert "the curves start again" in caplog.text
    assert pd.read_csv(tmp_path / "output" / "training.csv")["step"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 1, "loss": 1.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": None}],
        [{"step": 5, "eval_text_to_image_recall@1": 0.5}],
    ],
)
def test_curves_are_drawn_from_incomplete_logs(history, tmp_path):
    draw_training(str(tmp_path / "a.png"), curves(history))
    assert (tmp_path / "a.png").stat().st_size > 0


def drawn_texts(history, monkeypatch, tmp_path) -> list[str]:
    """All texts of training.png."""
    pyplot, figures = load_pyplot(), []
    monkeypatch.setattr(pyplot, "close", figures.append)
    draw_training(str(tmp_path / "a.png"), curves(history))
    monkeypatch.undo()
    pyplot.close(figures[0])
    return [text.get_text() for text in figures[0].findobj(Text)]


def evaluation(step: int, recall: float) -> dict[str, float]:
    directions = ("text_to_image", "image_to_text")
    recalls = {f"eval_{direction}_recall@{k}": recall for direction in directions for k in (1, 5, 10)}
    return {"step": step, "loss": 1.0, "eval_loss": 2.0, **recalls}


def test_one_evaluation_is_drawn_as_bars_with_their_values(monkeypatch, tmp_path):
    texts = drawn_texts([{"step": 5, "loss": 1.5}, evaluation(10, 0.625)], monkeypatch, tmp_path)
    assert texts.count("62.5") == 6 and {"R@1", "R@5", "R@10"} <= set(texts)
    assert {"training", "test_file"} <= set(texts)  # the legend of the losses


def test_several_evaluations_are_drawn_as_curves_from_their_minimum(monkeypatch, tmp_path):
    monkeypatch.setenv("FIGURE_LANGUAGE", "zh")
    texts = drawn_texts([evaluation(5, 0.61), evaluation(10, 0.625)], monkeypatch, tmp_path)
    assert "文本 → 图片  R@1" in texts and "损失" in texts and "62.5" not in texts
    assert {"60", "63"} <= set(texts) and "loss" not in texts


# ---- warnings ----


def rows(caption=lambda n: CAPTIONS[n % 8], image=lambda n: f"{n % 8}.png", count: int = 16) -> list[str]:
    return [f"{caption(n)},{image(n)}" for n in range(count)]


def warnings(caplog) -> list[str]:
    """Warnings about the run itself, without those about single images."""
    records = [record for record in caplog.records if record.levelname == "WARNING"]
    return [record.getMessage() for record in records if "left out of" not in record.getMessage()]


STEADY = dict(logging_steps=5, warmup_steps=5, lr_scheduler_type="constant_with_warmup")


def test_a_healthy_run_has_no_warnings(trainer, data, caplog):
    keys = dict(test_file=str(data / "train.csv"), eval_strategy="steps", eval_steps=20, max_steps=100)
    trainer(**STEADY, **keys, per_device_train_batch_size=8, learning_rate=3e-3).train()
    # With so small a model, waiting for data depends on the disk of this machine.
    assert [warning for warning in warnings(caplog) if "waiting for data" not in warning] == []


EVERY_CAPTION_WITH_EVERY_IMAGE = rows(image=lambda n: f"{n // 8}.png", count=64)
ONE_CAPTION = rows(caption=lambda n: CAPTIONS[0])


@pytest.mark.parametrize(
    ("train", "keys", "symptoms"),
    [
        (rows(), dict(learning_rate=1e-9), ["the model has learnt nothing so far"]),
        (rows(), dict(learning_rate=1e-9, loss_type="siglip"), ["the model has learnt nothing so far"]),
        (rows(), dict(learning_rate=1e-9, gradient_accumulation_steps=2), ["the model has learnt nothing so far"]),
        (EVERY_CAPTION_WITH_EVERY_IMAGE, {}, ["the model has learnt nothing so far"]),
        (EVERY_CAPTION_WITH_EVERY_IMAGE, dict(mask_duplicates=True), ["the model has learnt nothing so far"]),
        (
            ONE_CAPTION,
            dict(learning_rate=0.02),
            ["the model has learnt nothing so far", "different texts (mean cosine"],
        ),
        (
            rows(),
            dict(learning_rate=0.1),
            ["the model has learnt nothing so far", "logit_scale has fallen", "different texts (mean"],
        ),
        (
            rows(image=lambda n: "0.png"),
            {},
            ["the model has learnt nothing so far", "different images (mean cosine 1.000)"],
        ),
        (rows(image=lambda n: "0.png" if n == 3 else "none.png"), {}, ["there is only one good pair in a batch"]),
        (rows(count=1), {}, ["train_file has one pair"]),
    ],
)
def test_each_symptom_is_reported_once(trainer, data, caplog, train, keys, symptoms):
    trainer(
        train_file=write_pairs(data, *train), **{**STEADY, "max_steps": 60, "per_device_train_batch_size": 8, **keys}
    ).train()
    for symptom in symptoms:
        assert sum(symptom in warning for warning in warnings(caplog)) == 1, symptom


def test_a_scale_that_rises_to_its_maximum_is_reported_once(trainer, caplog):
    trained, built = (
        trainer(**keys, per_device_train_batch_size=8)
        for keys in (dict(**STEADY, max_steps=25, learning_rate=5e-3), dict(max_steps=5, learning_rate=1.0))
    )
    for module in (*trained.model.modules(), *built.model.modules()):
        module.p = 0.0  # no dropout: pairs that are distinguished once stay so in every step
    trained.train()
    built.model.load_state_dict(trained.model.state_dict())
    built.model.requires_grad_(False).logit_scale.requires_grad_(True)
    built.train()
    assert sum("logit_scale has risen from 1" in warning for warning in warnings(caplog)) == 1


def test_recall_that_falls_together_with_the_loss_is_reported_once(trainer, data, caplog):
    keys = dict(test_file=str(data / "train.csv"), eval_strategy="steps", eval_steps=10, eval_on_start=True)
    built = trainer(**STEADY, **keys, max_steps=60, per_device_train_batch_size=8, learning_rate=5e-3)
    built.train()
    write_pairs(data, *rows(caption=lambda n: CAPTIONS[(n + 3) % 8], count=8))
    built.train_dataset = trainer(train_file=str(data / "t.csv")).train_dataset
    built.train()
    (warning,) = (warning for warning in warnings(caplog) if "overfitting the training pairs" in warning)
    assert "from 100.0% at step 0" in warning and "blend_checkpoints.py" in warning


def test_waiting_for_data_is_reported_with_remedies(trainer, data, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
    for number in range(8):
        Image.fromarray(noise).save(data / "images" / f"{number}.png", compress_level=1)
    trainer(**STEADY, max_steps=30).train()
    (warning,) = (warning for warning in warnings(caplog) if "waiting for data" in warning)
    assert "dataloader_num_workers" in warning and "image_feature_cache: auto" in warning


@pytest.mark.parametrize(
    ("train", "keys", "symptom"),
    [
        (rows(image=lambda n: f"{n}.png", count=20), {}, "t.csv: 12 of the 20 images checked"),
        (rows(), dict(max_seq_length=5), "t.csv: 100.0% of the captions are truncated to max_seq_length 5"),
        (rows(), {}, "t.csv: 50.0% of the captions repeat"),
        (rows(), dict(warmup_steps=1000), "the warm-up takes 1000 steps, but the run has only 1 (4 per epoch)"),
    ],
)
def test_doubtful_data_is_reported_before_training(run, data, caplog, train, keys, symptom):
    run(train_file=write_pairs(data, *train), **keys, max_steps=1)
    assert sum(symptom in warning for warning in warnings(caplog)) == 1


def test_no_warning_for_masked_duplicates_or_a_few_truncated_captions_and_missing_images(run, data, caplog):
    some = [*rows(count=18), f"{CAPTIONS[0] * 3},1.png", "红色的云,none.png"]
    run(train_file=write_pairs(data, *some), mask_duplicates=True, max_steps=1)
    assert warnings(caplog) == []


# ---- check_data ----


def test_check_data_reports_bad_data_and_does_not_train(run, data, tmp_path, caplog):
    (data / "images" / "2.png").write_bytes(b"<html>")
    shutil.copy(data / "images" / "3.png", data / "images" / "copy.png")
    some = [
        *rows(count=9),
        f"{CAPTIONS[0] * 3}猫,none.png",
        f"{CAPTIONS[1]},2.png",
        f"{CAPTIONS[2]},copy.png",
        ",1.png",
    ]
    file = write_pairs(data, *some)
    run(train_file=file, test_file=str(data / "train.csv"), check_data=True, max_seq_length=12)
    line = next(record.getMessage() for record in caplog.records if "t.csv: 12 pairs" in record.getMessage())
    assert "empty captions (left out): 1; truncated to max_seq_length 12: 1 (8.3%); repeated captions: 3, " in line
    assert "with the same image too: 1" in line
    assert "images: 10, of which bad: 2 (of 3 pairs), copies of others: 1" in line
    assert "none.png: no such file" in caplog.text and "7 of its images are in train_file too" in caplog.text
    assert set(os.listdir(tmp_path / "output")) == {"check_data.html", "check_data_bad_images.csv"}
    bad = pd.read_csv(tmp_path / "output" / "check_data_bad_images.csv")
    assert bad["filename"].tolist() == ["2.png", "none.png", "2.png"]
    page = (tmp_path / "output" / "check_data.html").read_text(encoding="utf-8")
    assert page.count('<article class="card">') == 12 and page.count("data:image/jpeg") == 9
    assert page.count('<span class="token cut">') > 10 + 1 and "分钟" in page
    assert "<td>none.png</td><td>文件不存在</td>" in page and "no such file" not in page
    assert page.count('<span style="left:') > 4  # ticks of two histograms


@pytest.mark.parametrize(
    ("train", "keys", "problem"),
    [
        (rows(image=lambda n: "none.png"), {}, "none of its 1 images can be read"),
        (["ＸＹＺ,0.png", "ＸＹ,1.png"], {}, "100.0% of the tokens are [UNK]"),
        (rows(count=3), dict(dataloader_drop_last=True), "`dataloader_drop_last` leaves no step"),
    ],
)
def test_problems_that_would_stop_a_run_are_on_the_page(run, data, tmp_path, train, keys, problem):
    run(train_file=write_pairs(data, *train), check_data=True, **keys)
    assert problem in html.unescape((tmp_path / "output" / "check_data.html").read_text(encoding="utf-8"))


def test_check_data_counts_unknown_characters_as_training_does(data, train_args, bert_clip_path):
    """In the truncated captions: a caption whose end is unknown, but never seen, does not stop a run."""
    file = write_pairs(data, "红色的圆" + "龘" * 50 + ",0.png", "红龘,1.png")
    args = load_arguments(train_args(train_file=file, max_seq_length=7, pair_table="off"))
    model, processor = BertCLIPModel.from_pretrained(bert_clip_path), load_processor(bert_clip_path)
    trained, _ = load_datasets(args, processor)
    (checked,) = check_data(args, model, processor).tables
    assert checked.share_of_unknown == trained.table.share_of_unknown == pytest.approx(2 / 7)
    assert checked.highest_token_id == trained.table.highest_token_id


def test_pairs_are_shown_as_the_model_sees_them(run, data, train_args, tmp_path, bert_clip_path):
    keys = dict(train_file=write_pairs(data, f"{CAPTIONS[0]}猫,0.png"), check_data=True, max_seq_length=8)
    args = load_arguments(train_args(**keys, min_crop_area=0.5, random_flip=True))
    found = check_data(args, BertCLIPModel.from_pretrained(bert_clip_path), load_processor(bert_clip_path))
    (sample,) = found.samples
    assert sample.image.size == (32, 32) and sample.tokens == ["[CLS]", *CAPTIONS[0], "[UNK]", "[SEP]"]
    assert found.num_cut(found.tables[0]) == 1 and found.cache_minutes is None  # random crops cannot be cached


def test_whole_captions_are_counted_and_the_batch_decides_how_often_copies_meet(data, bert_clip_path):
    processor = load_processor(bert_clip_path)
    dataset = PairDataset(
        write_pairs(data, *rows(caption=lambda n: CAPTIONS[n // 2])), str(data / "images"), processor, 2**31
    )
    texts = survey_texts(dataset.table, batch=16, max_seq_length=16, unknown_id=1)
    assert texts.repeated == 8 and texts.meetings == pytest.approx(1) and texts.most_repeated[0][1] == 2
    assert texts.lengths.tolist() == [len(CAPTIONS[n // 2]) + 2 for n in range(16)]


def test_every_reason_that_the_page_translates_exists():
    code = "".join(p.read_text("utf-8") for p in Path(ROOT, "component").rglob("*.py") if p.name != "data_check.py")
    code = code.replace("{SINCE_INDEXED}", SINCE_INDEXED)
    assert not [reason for reason in REASONS if f'"{reason}' not in code]
