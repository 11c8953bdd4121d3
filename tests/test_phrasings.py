"""Evaluation with the same texts asked in other words."""

import json
import os
import sys

import numpy as np
import pytest
from conftest import CAPTIONS, ROOT, run_python

from component.checkpoint import load_checkpoint
from component.embedding import embed_images, embed_texts
from component.evaluation.phrased_retrieval import mean_metrics
from component.evaluation.phrasings import dropped, full_width, half_width, read_phrasings, swapped
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import read_retrieval_data
from component.pairs.templates import read_templates
from component.report.phrasings import phrasing_rows, phrasing_table


def write(path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_the_shipped_phrasings_are_not_trained_on():
    pytest.importorskip("opencc")
    phrasings = read_phrasings()
    assert {phrasing.group for phrasing in phrasings} == {"development", "reported"}
    trained = {template.text for template in read_templates(os.path.join(ROOT, "train_args", "text_templates.txt"))}
    assert trained and not trained & {phrasing.name for phrasing in phrasings}


def test_a_change_is_the_same_every_time_and_what_its_name_says():
    for text in ("一只小狗在摇尾巴", "3D 眼镜", "abc"):
        assert swapped(text) == swapped(text) != text and sorted(swapped(text)) == sorted(text)
        assert len(dropped(text)) == len(text) - 1 and dropped(text) == dropped(text)
    assert [swapped(text) for text in ("红", "红红", "红，", "")] == ["红", "红红", "红，", ""]
    assert dropped("小狗") == "小狗" and dropped("小狗，") == "小狗，"
    assert half_width(full_width("a b(1)~")) == "a b(1)~"


def test_traditional_and_simplified_characters():
    pytest.importorskip("opencc")
    changes = {phrasing.name: phrasing.change for phrasing in read_phrasings()}
    assert changes["traditional"]("一辆红色的汽车，头发") == "一輛紅色的汽車，頭髮"
    assert changes["simplified"]("一輛紅色的汽車，頭髮") == "一辆红色的汽车，头发"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "# asked\n\n[reported]\n{}？\n一张照片\n",
            "p.txt, line 5: '一张照片' has no {}, and is none of swapped, dropped",
        ),
        ("{}和{}\n", "p.txt, line 1: '{}和{}' has {} 2 times"),
        ("{}？\nswapped\n{}？\n", "p.txt, line 3 repeats line 1: '{}？'"),
        ("[reported]\n# nothing\n", "p.txt has no phrasing"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(ValueError) as error:
        read_phrasings(write(tmp_path / "p.txt", content))
    assert message in str(error.value)


def test_a_missing_package_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match="p.txt, line 1: traditional needs opencc: pip install opencc"):
        read_phrasings(write(tmp_path / "p.txt", "traditional\n"))


def test_headings_are_not_mistaken_for_brackets(tmp_path):
    phrasings = read_phrasings(write(tmp_path / "p.txt", "{}！\n[how we ask]\n[{}]\n"))
    assert [phrasing[:2] for phrasing in phrasings] == [("{}！", ""), ("[{}]", "how we ask")]
    assert phrasings[1].change("小狗") == "[小狗]"


def test_recalls_are_those_of_the_texts_that_a_phrasing_changes(bert_clip_path, data, tmp_path):
    """Two images for a text, a text whose only image is bad, and phrasings that change some texts or none."""
    rows = [f"{caption},{n}.png" for n, caption in enumerate(CAPTIONS)] + [f"{CAPTIONS[0]},3.png", "小，狗,none.png"]
    found = read_retrieval_data(write(data / "t.csv", "text,filename\n" + "\n".join(rows)), str(data / "images"))
    path = write(tmp_path / "p.txt", "[a]\n一只{}\ndropped\n[b]\nhalf-width\n")
    model, processor = load_checkpoint(bert_clip_path)
    result = evaluate_retrieval(model, processor, found, phrasings=read_phrasings(path))

    images = embed_images(model, processor, [str(data / "images" / f"{n}.png") for n in range(8)]).embeds
    for phrased, change in zip(result.phrased, ("一只{}".format, dropped), strict=False):
        texts = [change(caption) for caption in CAPTIONS]
        scores = (embed_texts(model, processor, texts).embeds @ images.T).numpy()
        right = np.eye(8, dtype=bool)
        right[0, 3] = True
        best = np.where(right, scores, -9).max(axis=1, keepdims=True)
        assert phrased.ranks.tolist() == (1 + ((scores >= best) & ~right).sum(axis=1)).tolist()
        assert phrased.plain_ranks.equal(result.ranks["text_to_image"]) and phrased.metrics["texts"] == 8
        assert phrased.example == texts[0]
        assert phrased.metrics["recall@5"] == pytest.approx((phrased.ranks <= 5).float().mean().item())
    assert result.phrased[2].metrics == {"texts": 0}
    means = mean_metrics(result.phrased)
    assert means["a"]["texts"] == 16 and means["b"] == {"texts": 0}
    assert means["a"]["recall@1"] == pytest.approx(np.mean([one.metrics["recall@1"] for one in result.phrased[:2]]))
    table = phrasing_table(phrasing_rows(result)).splitlines()
    assert table[0] == "|  | group | texts | R@1 | R@5 | R@10 | R@1 as they are |"
    assert table[2].startswith("| as they are |  | 8 |") and table[5].startswith("| mean | a | 16 |")
    assert table[6] == "| half-width | b | 0 |  |  |  |  |"


def test_the_command_line_writes_table_figure_page_and_numbers(bert_clip_path, data, tmp_path):
    path = write(tmp_path / "p.txt", "[reported]\n{}|小狗$\nswapped\n")
    options = ["--model", bert_clip_path, "--test_file", data / "train.csv", "--image_path", data / "images"]
    options += ["--output", tmp_path / "out", "--html", tmp_path / "page.html", "--phrasings", path]
    done = run_python("evaluate_clip.py", *options)
    assert done.returncode == 0, done.stderr
    assert "| {}\\|小狗$ | reported | 8 |" in done.stdout
    assert (tmp_path / "out" / "metrics.md").read_text(encoding="utf-8") in done.stdout
    assert {"phrasings.png", "recall.png"} <= set(os.listdir(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["phrasings_file"] == path
    assert [one["phrasing"] for one in metrics["phrasings"]] == ["{}|小狗$", "swapped"]
    mean = metrics["phrasings_mean"]["reported"]["recall@1"]
    assert f"| mean | reported | 16 | {100 * mean:.1f} |" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "换个问法" in page and f"--share:{100 * mean:.1f}%" in page and "原样" in page
