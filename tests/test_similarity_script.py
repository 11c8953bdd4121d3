"""predict_similarity.py through its command line, and the page it writes in a real browser."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, run_python
from PIL import Image
from safetensors.torch import load_file, save_file

import predict_similarity
from component.embedding import Embedded
from component.ground import command
from component.ground.lock import sole_writer
from component.report.similarity_page import similarity_page
from component.similarity import Similarity

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run(*arguments) -> subprocess.CompletedProcess:
    return run_python("predict_similarity.py", *arguments)


def run_here(monkeypatch, *arguments: str) -> int:
    """Run it in this process: a new one takes seconds to import torch."""
    monkeypatch.setattr(sys, "argv", ["predict_similarity.py", *map(str, arguments)])
    try:
        return command.run_script(predict_similarity.main)
    except SystemExit as stop:  # argparse's own
        return stop.code


def read_csv(path) -> list[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(data) -> list[str]:
    return [str(data / "images" / f"{number}.png") for number in range(4)]


def test_images_and_texts_are_compared_in_both_directions(bert_clip_path, images, tmp_path):
    files = ["--csv", tmp_path / "out.csv", "--json", tmp_path / "out.json"]
    done = run("--model", bert_clip_path, "--images", *images, "--texts", *CAPTIONS, "--top_k", "3", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nimage → text\n" in done.stdout and "\ntext → image\n" in done.stdout
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == read_csv(tmp_path / "out.csv")
    assert len(rows) == 4 * 3 + 8 * 3
    for start in range(0, len(rows), 3):
        block = rows[start : start + 3]
        assert [row["rank"] for row in block] == [1, 2, 3] and len({row["query"] for row in block}) == 1
        assert block[0]["cosine"] >= block[1]["cosine"] >= block[2]["cosine"]
    assert os.listdir(tmp_path / "data") and not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@pytest.mark.parametrize("given, title", [("--texts", "text → text"), ("--images", "image → image")])
def test_items_of_one_kind_are_compared_with_each_other(bert_clip_path, images, given, title, monkeypatch, capsys):
    items = CAPTIONS if given == "--texts" else images
    assert run_here(monkeypatch, "--model", bert_clip_path, given, *items) == 0
    assert re.findall(r".* → .*", capsys.readouterr().out) == [title]


def test_without_texts_and_images_the_test_images_are_compared(bert_clip_path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # works from any folder
    assert run_here(monkeypatch, "--model", bert_clip_path, "--task", "all") == 0
    out = capsys.readouterr().out
    assert re.findall(r".* → .*", out) == ["image → text", "text → image", "text → text", "image → image"]
    assert "fluent_cat.png" in out and "一只小猫" in out


def test_a_folder_and_a_text_file_are_read(bert_clip_path, data, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("\ufeff红色的圆\n\n  NA \n", encoding="utf-8")
    options = ["--images", data / "images", "--text_file", tmp_path / "texts.txt", "--csv", tmp_path / "out.csv"]
    assert run_here(monkeypatch, "--model", bert_clip_path, *options) == 0
    rows = [row for row in read_csv(tmp_path / "out.csv") if row["task"] == "image → text"]
    assert {row["candidate"] for row in rows} == {"红色的圆", "NA"}
    assert {row["query"] for row in rows} == {str(data / "images" / f"{number}.png") for number in range(8)}


@pytest.mark.parametrize("gone", ["gone.png", "gone/gone.png", "/gone/gone.png"])
def test_a_bad_image_is_named_and_the_others_are_compared(bert_clip_path, images, tmp_path, monkeypatch, capsys, gone):
    with open(images[1], "r+b") as file:
        file.truncate(200)
    options = ["--images", *images, gone, "--texts", "红", "--csv", tmp_path / "o.csv"]
    assert run_here(monkeypatch, "--model", bert_clip_path, *options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and images[1] in lines[0] and f"{gone}: no such file" in lines[1]
    good = {row["query"] for row in read_csv(tmp_path / "o.csv") if row["task"] == "image → text"}
    assert good == {images[0], images[2], images[3]}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task", "image-audio"], "invalid choice: 'image-audio'"),
        (["--task", "image-text", "--texts", "红"], "--task image-text needs images: add --images."),
        (["--task", "all", "--images", "a.png"], "--task all needs texts: add --texts."),
        (["--texts", "红"], "text-text needs at least two"),
        (["--texts", "红", " "], "expected a text with a visible character"),
        (["--texts", "红", "\u200b\u2060"], "expected a text with a visible character"),
        (["--texts", "红", os.fsdecode("狗".encode("gbk"))], "expected a text in UTF-8 (the terminal uses another"),
        (["--images", "gone.png"], "no image to compare: none of the 1 given can be read"),
        (["--images", "empty"], "the folder empty "),
        (["--text_file", "gbk.txt"], "gbk.txt is not UTF-8"),
        (["--text_file", "blank.txt"], "blank.txt holds no text"),
        (["--text_file", "gone.txt"], "--text_file gone.txt: expected a file, but it does not exist"),
        (["--texts", "红", "蓝", "--top_k", "0"], "--top_k 0: expected a number of matches from 1"),
        (["--texts", "红", "蓝", "--json", "gone/out.json"], "the folder gone does not exist"),
        (["--texts", "红", "蓝", "--html", "empty"], "empty is a folder"),
    ],
)
def test_a_bad_argument_gives_one_clear_line(bert_clip_path, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "gbk.txt").write_bytes("红色".encode("gbk"))
    (tmp_path / "blank.txt").write_text("\n \n")
    assert run_here(monkeypatch, "--model", bert_clip_path, *options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert all(line.startswith(("usage", "left out: gone.png")) for line in lines[:-1])


def test_file_names_that_are_not_utf8_are_escaped_in_every_output(bert_clip_path, data, tmp_path, monkeypatch, capsys):
    """File names in GBK, as an old Windows writes them, for an image and for the results."""
    gbk = os.fsdecode("狗\x1b[31m.png".encode("gbk"))
    shutil.copy(data / "images" / "0.png", tmp_path / gbk)
    monkeypatch.chdir(tmp_path)
    names = {ending: os.fsdecode("果.".encode("gbk")) + ending for ending in ("json", "csv", "html")}
    options = [word for ending, name in names.items() for word in (f"--{ending}", name)]
    texts = ["=HYPERLINK(1)", "+1\u202e"]
    assert run_here(monkeypatch, "--model", bert_clip_path, "--images", gbk, "--texts", *texts, *options) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and r"\udcb9\udcb7\x1b[31m.png" in out
    rows = json.loads((tmp_path / names["json"]).read_text(encoding="utf-8"))
    assert rows[0]["query"] == gbk and {row["candidate"] for row in rows[:2]} == set(texts)
    assert {row["candidate"] for row in read_csv(tmp_path / names["csv"])[:2]} == {f"'{text}" for text in texts}
    html = (tmp_path / names["html"]).read_text(encoding="utf-8")
    assert "\x1b" not in html and "\u202e" not in html and r"+1\u202e" in html


@pytest.mark.parametrize("weight", ["text_projection.weight", "visual_projection.weight", "logit_scale"])
def test_a_model_of_nans_is_refused_and_leaves_no_file(bert_clip_path, images, tmp_path, monkeypatch, capsys, weight):
    folder = copy_without(bert_clip_path, tmp_path)
    weights = load_file(os.path.join(folder, "model.safetensors"))
    weights[weight] = weights[weight] * float("nan")
    save_file(weights, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    options = ["--images", *images, "--texts", "红", "--json", tmp_path / "out.json"]
    assert run_here(monkeypatch, "--model", folder, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nan" in error.lower() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("first, second", [("--json", "--csv"), ("--csv", "--html"), ("--images", "--html")])
def test_two_options_for_the_same_file_are_refused(bert_clip_path, tmp_path, monkeypatch, capsys, first, second):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "--model", bert_clip_path, first, "out", second, "./out") == 2
    assert f"{second} and {first} name the same file" in capsys.readouterr().err and not os.listdir(tmp_path)


@pytest.mark.parametrize("option", ["--json", "--csv", "--html"])
def test_a_result_that_another_process_writes_is_refused(bert_clip_path, tmp_path, monkeypatch, capsys, option):
    with sole_writer(str(tmp_path / "out")):
        options = ["--texts", "红", "蓝", option, tmp_path / "out"]
        assert run_here(monkeypatch, "--model", bert_clip_path, *options) == 2
    assert "out is being written by another run (process" in capsys.readouterr().err and not os.listdir(tmp_path)


def copy_without(folder, tmp_path, *names) -> str:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    for name in names:
        (copy / name).unlink()
    return str(copy)


@pytest.mark.parametrize(
    "missing, message",
    [
        (["model.safetensors"], "has neither model.safetensors nor"),
        (["preprocessor_config.json", "processor_config.json"], "has neither preprocessor_config.json nor"),
        (["tokenizer.json", "vocab.txt"], "has neither tokenizer.json nor vocab.txt"),
        (["config.json"], "is not a model folder: it has no config.json"),
    ],
)
def test_an_incomplete_model_folder_gives_one_clear_line(
    bert_clip_path, tmp_path, monkeypatch, capsys, missing, message
):
    folder = copy_without(bert_clip_path, tmp_path, *missing)
    assert run_here(monkeypatch, "--model", folder, "--texts", "红", "蓝") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{folder} {message}" in lines[0]


def test_for_the_folder_above_the_checkpoints_a_checkpoint_is_suggested(tmp_path, monkeypatch, capsys):
    for name in ("checkpoint-5", "checkpoint-final"):
        (tmp_path / name).mkdir()
    assert run_here(monkeypatch, "--model", tmp_path, "--texts", "红", "蓝") == 2
    assert f"Did you mean {tmp_path / 'checkpoint-final'}?" in capsys.readouterr().err


def test_a_damaged_tokenizer_gives_one_clear_line(bert_clip_path, tmp_path, monkeypatch, capsys):
    folder = copy_without(bert_clip_path, tmp_path)
    with open(os.path.join(folder, "tokenizer.json"), "r+b") as file:
        file.truncate(100)
    assert run_here(monkeypatch, "--model", folder, "--texts", "红", "蓝") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{folder} cannot be loaded" in lines[0]


def test_damaged_and_foreign_weights_give_one_clear_line(bert_clip_path, bert_path, tmp_path):
    folder = copy_without(bert_clip_path, tmp_path)
    weights = os.path.join(folder, "model.safetensors")
    with open(weights, "r+b") as file:
        file.truncate(5000)
    damaged = run("--model", folder, "--texts", "红", "蓝")
    shutil.copyfile(os.path.join(bert_path, "model.safetensors"), weights)
    foreign = run("--model", folder, "--texts", "红", "蓝")
    for done, message in ((damaged, "cannot be loaded"), (foreign, "is not a BertCLIP checkpoint")):
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# ---- the page ----


@pytest.fixture
def page(bert_clip_path, tmp_path, monkeypatch):
    """A page of two plain images and three texts."""
    for colour in ("red", "lime"):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{colour}.png")
    monkeypatch.chdir(tmp_path)
    texts = ["红色的圆", "<script>alert('x')</script>", "绿色的树" * 20]
    options = ["--images", "red.png", "lime.png", "--texts", *texts, "--task", "all", "--html", "page.html"]
    assert run_here(monkeypatch, "--model", bert_clip_path, *options) == 0
    return tmp_path / "page.html"


def test_the_page_is_self_contained_and_holds_each_image_once(page):
    html = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=|url\((?!data:image/jpeg;base64,)|@import", html)
    assert html.count("data:image/jpeg") == 2
    assert html.count("<table>") == 4 and html.count('class="card"') == 2 + 3 + 3 + 2
    assert "<script" not in html and "&lt;script&gt;" in html
    assert '<meta name="viewport" content="width=device-width' in html


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.1 defines it, of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    linear = np.array(list(bytes.fromhex(digits))) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_cell_of_the_heat_map_can_be_read():
    angles = torch.linspace(0, torch.pi, 40)
    texts = Embedded("text", [str(i) for i in range(40)], torch.stack([angles.cos(), angles.sin()], 1), range(40))
    html = similarity_page([Similarity(texts, texts, 10.0)], top_k=1)
    cells = re.findall(r'background:(#\w+);color:(#\w+)">', html)
    assert len(cells) == 40 * 39 and "max-height: 85vh" not in html
    for pair in set(cells):
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1200])
def test_thumbnails_are_drawn_in_a_browser(page, tmp_path, width):
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
    command = f"{BROWSER} --headless --no-sandbox --disable-gpu --hide-scrollbars {quiet} --window-size={width},1500"
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", page.as_uri()]
    subprocess.run([*command.split(), *where], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    # 48 × 32 px in the heat map, 88 × 59 px at the head of a card: at least these two of each colour are in sight.
    assert ((red > 230) & (green < 30) & (blue < 30)).sum() > 5000
    assert ((green > 230) & (red < 30) & (blue < 30)).sum() > 5000
