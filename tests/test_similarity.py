"""component/similarity.py and what it builds on: embeddings, scores, tables."""

import os
import resource
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from PIL import Image
from transformers import CLIPProcessor

from component import similarity as similarity_module
from component.checkpoint import load_checkpoint
from component.embedding import Embedded, embed_images, embed_texts, text_batches
from component.pairs.text_groups import costs_on, group_by_cost
from component.report.matches import match_rows, terminal_table
from component.report.text_table import display_width, text_table
from component.similarity import (
    Similarity,
    compare,
    image_image_similarity,
    image_text_similarity,
    text_text_similarity,
)


@pytest.fixture(scope="module")
def checkpoint(bert_clip_path):
    return load_checkpoint(bert_clip_path)


def images_of(data) -> list[str]:
    return [str(data / "images" / f"{number}.png") for number in range(8)]


def side(vectors, kind="text", items=None) -> Embedded:
    embeds = torch.tensor(vectors, dtype=torch.float)
    return Embedded(kind, items or [f"{kind}{i}" for i in range(len(embeds))], embeds, list(range(len(embeds))))


# ---- scores ----


def test_image_text_scores_are_the_models_own_softmax(checkpoint, data):
    model, processor = checkpoint
    images = [Image.open(path) for path in images_of(data)]
    inputs = processor(text=CAPTIONS, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        outputs = model(**inputs)
    found = image_text_similarity(model, processor, images_of(data), CAPTIONS, batch_size=3)
    torch.testing.assert_close(found.scores(), outputs.logits_per_image.softmax(dim=1))
    torch.testing.assert_close(found.transposed().scores(), outputs.logits_per_text.softmax(dim=1))
    torch.testing.assert_close(found.cosines(), outputs.image_embeds @ outputs.text_embeds.T)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_an_item_is_not_a_candidate_of_itself(checkpoint, data, kind):
    model, processor = checkpoint
    if kind == "text":
        found = text_text_similarity(model, processor, CAPTIONS)
    else:
        found = image_image_similarity(model, processor, images_of(data))
    logits = found.logit_scale * found.cosines()
    logits.fill_diagonal_(-10000)
    torch.testing.assert_close(found.scores(), logits.softmax(dim=1))
    assert torch.all(found.scores().diagonal() == 0)
    for query, matches in enumerate(found.best()):
        assert sorted(match.candidate for match in matches) == [i for i in range(8) if i != query]


def test_scores_and_order_equal_a_hand_calculation():
    texts = side([[1, 0], [0, 1], [0.6, 0.8]])
    found = Similarity(texts, texts, logit_scale=float(np.log(10)))
    # Text 0: cosines 0 and 0.6 with the others, so 10^0 against 10^0.6.
    (first, second), *_ = found.best()
    assert (first.candidate, second.candidate) == (2, 1)
    assert first.cosine == pytest.approx(0.6) and second.cosine == 0
    assert first.score == pytest.approx(10**0.6 / (1 + 10**0.6))
    assert first.score + second.score == pytest.approx(1)


def test_equal_candidates_keep_their_order():
    found = Similarity(side([[1.0, 0.0]]), side([[0, 1], [1, 0], [1, 0], [1, 0]]), logit_scale=100.0)
    assert [match.candidate for match in next(found.best())] == [1, 2, 3, 0]


def test_distant_candidates_are_still_in_order():
    """At a scale of 100 their softmax scores all underflow to 0."""
    angles = np.array([0.1, 3.0, 1.5, 2.5, 2.0])
    candidates = side(np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist())
    found = Similarity(side([[1.0, 0.0]]), candidates, logit_scale=100.0)
    assert [match.candidate for match in next(found.best())] == [0, 2, 4, 3, 1]


def test_chunked_equals_unchunked(monkeypatch):
    torch.manual_seed(0)
    texts = side(torch.nn.functional.normalize(torch.randn(23, 5), dim=1).tolist())
    whole = Similarity(texts, texts, logit_scale=10.0)
    expected_scores, expected_best = whole.scores(), list(whole.best(4))
    monkeypatch.setattr(similarity_module, "_CELLS_PER_CHUNK", 50)  # two queries at a time
    torch.testing.assert_close(whole.scores(), expected_scores)
    for found, expected in zip(whole.best(4), expected_best, strict=True):
        assert [m.candidate for m in found] == [m.candidate for m in expected]
        np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], rtol=1e-5)


def test_a_large_comparison_does_not_hold_the_matrix():
    queries, candidates = (side(torch.randn(count, 4).tolist()) for count in (20_000, 50_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matches = list(islice(Similarity(queries, candidates, logit_scale=10.0).best(5), 100))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(matches) == 100 and grown < 200_000  # kB; the whole matrix would be 4 GB


def test_a_comparison_without_items_is_refused(checkpoint):
    model, processor = checkpoint
    with pytest.raises(ValueError, match="text-text needs at least two"):
        text_text_similarity(model, processor, ["一只小狗"])
    with pytest.raises(ValueError, match="no image to compare: none of the 1 given can be read"):
        image_text_similarity(model, processor, ["nowhere.png"], CAPTIONS)
    texts = embed_texts(model, processor, [])
    with pytest.raises(ValueError, match="There is no text to compare"):
        compare(model, texts, texts)


# ---- embeddings ----


def test_sorting_by_length_does_not_change_the_order_of_the_results(checkpoint):
    model, processor = checkpoint
    texts = ["红", "一只小狗在摇尾巴", "", "蓝色的方块", "云" * 50, "黄色的花"]
    found = embed_texts(model, processor, texts, batch_size=2)
    for row, text in enumerate(texts):
        with torch.no_grad():
            alone = model.get_text_features(**processor.tokenizer(text, return_tensors="pt", truncation=True))
        torch.testing.assert_close(found.embeds[row], torch.nn.functional.normalize(alone[0], dim=0))
    assert [found.item(row) for row in found.rows] == texts


def test_a_character_in_another_form_is_embedded_as_the_known_one_and_others_are_counted(checkpoint, caplog):
    kangxi, small = "⼩狗\u3000在", "小狗 在"  # U+2F29 and U+5C0F
    assert kangxi[0] != small[0]
    torch.testing.assert_close(embed_texts(*checkpoint, [kangxi]).embeds, embed_texts(*checkpoint, [small]).embeds)
    assert not caplog.records
    embed_texts(*checkpoint, ["小狗", "☃", "小豹", kangxi])
    assert "2 of 4 texts have a word that the vocabulary lacks" in caplog.text and "'☃'" in caplog.text


def test_half_of_a_character_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"text 1 contains half of a character \('\\ud83d'\)"):
        embed_texts(*checkpoint, ["小狗", "小\ud83d狗"])


@pytest.mark.parametrize("count, batch_size, device_type", [(1, 8, "cpu"), (40, 64, "cpu"), (500, 32, "cuda")])
def test_text_batches_are_the_cheapest_groups(checkpoint, count, batch_size, device_type):
    lengths = np.random.default_rng(0).integers(1, 20, count)
    texts, seen = ["云" * length for length in lengths], []
    groups = group_by_cost(lengths + 2, costs_on(device_type), batch_size)
    batches = text_batches(checkpoint[1], texts, batch_size, device_type)
    for (rows, batch), (group, width) in zip(batches, groups, strict=True):
        assert rows == group.tolist() and batch["input_ids"].shape == (len(rows), width)
        assert batch["attention_mask"].sum(dim=1).tolist() == (lengths[rows] + 2).tolist()
        assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == checkpoint[1].tokenizer.pad_token_id)
        seen += rows
    assert sorted(seen) == list(range(count))


def test_a_processor_loaded_without_our_defaults_works_too(checkpoint, bert_clip_path):
    model, processor = checkpoint
    theirs = CLIPProcessor.from_pretrained(bert_clip_path)
    expected = embed_texts(model, processor, CAPTIONS).embeds
    torch.testing.assert_close(embed_texts(model, theirs, CAPTIONS).embeds, expected)


@pytest.mark.parametrize("num_workers", [0, 2, None])
def test_bad_images_are_left_out_and_named(checkpoint, data, num_workers):
    model, processor = checkpoint
    images = images_of(data)
    whole = embed_images(model, processor, images, batch_size=8)
    with open(images[3], "r+b") as file:
        file.truncate(100)
    os.remove(images[6])
    done = []
    found = embed_images(model, processor, images, batch_size=2, num_workers=num_workers, on_batch=done.append)
    assert found.rows == [0, 1, 2, 4, 5, 7]
    assert found.bad_images[6] == "no such file" and list(found.bad_images) == [3, 6]
    assert found.item(3) == images[4]
    torch.testing.assert_close(found.embeds, whole.embeds[found.rows])
    assert sum(done) == 8


def test_pil_images_of_any_mode_are_accepted(checkpoint):
    model, processor = checkpoint
    red = Image.new("RGB", (40, 40), "red")
    found = image_image_similarity(model, processor, [red, red.convert("RGBA"), red.convert("P")])
    torch.testing.assert_close(found.cosines(), torch.ones(3, 3))


# ---- what people read ----


def test_a_chinese_character_takes_two_columns():
    assert display_width("一只cat") == 7
    assert display_width("e\u0301") == 1
    assert display_width("，。") == 4


def test_the_columns_of_a_table_are_aligned():
    table = text_table(
        ["text", "score"], [("一只小狗", "9.0%"), ("cat", "100.0%"), ("很" * 50, "1%")], right=(1,), widest=20
    )
    lines = table.split("\n")
    assert {display_width(line) for line in lines} == {28}
    assert lines[-1].startswith("很" * 9 + "…")


def test_a_long_path_keeps_its_end():
    assert text_table(["image"], [("images/很长的名字/cat.png",)], paths=[0], widest=12).endswith("\n…字/cat.png")


def test_a_line_break_in_a_text_does_not_break_the_table():
    assert "一 二" in text_table(["text"], [("一\n二",)])


def test_a_terminal_table_says_how_many_queries_it_leaves_out():
    texts = side(np.eye(30).tolist())
    found = Similarity(texts, texts, logit_scale=1.0)
    table = terminal_table(found, top_k=2, num_queries=20)
    assert table.endswith("… and 10 more")
    assert table.count("\n") == 1 + 40 + 1
    assert len(list(match_rows(found, 2))) == 60
