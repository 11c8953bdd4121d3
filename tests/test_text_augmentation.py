"""Captions in templates and with slips: the tokens are those of the changed texts."""

import numpy as np
import pandas as pd
import pytest
from transformers import BertTokenizerFast

from component.argument import load_arguments
from component.pairs.image_stores import ImageFolder
from component.pairs.pair_table import ChunkEncoder
from component.pairs.templates import read_templates
from component.pairs.text_augmentation import TextAugmentation
from component.training.build import load_model
from component.training.check_data import check_data
from component.training.run_identity import run_of

TEMPLATES = ["一张{}的照片", "我想找{}", "{}。", "photo of {} in 2024"]
CAPTIONS = [
    "小狗",
    "红",
    "一只小狗在摇尾巴",
    "playing dogs，红色 的 圆",
    "dog",
    "红红红",
    "Café 小猪３只",
    "小狗小狗小狗小狗小狗小狗",
]
LONGEST = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s", "play", "##ing", "photo", "of", "in", "2024"]
    characters = sorted(set("".join(TEMPLATES + CAPTIONS)) - set("{} abcdefghijklmnopqrstuvwxyzé024"))
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(words + characters), encoding="utf-8")
    return BertTokenizerFast(str(path), split_special_tokens=True)


def encode(tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens as a pair table has them."""
    chunk = ChunkEncoder(tokenizer, LONGEST)((ImageFolder("."), pd.DataFrame({"text": texts, "filename": "1.png"})))
    return chunk.tokens, chunk.token_lengths


def texts_of(tokens: np.ndarray, lengths: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(tokens, lengths.cumsum()[:-1])]


def changed(augmentation, tokenizer, captions, seed=(0, 0)) -> list[tuple[int, ...]]:
    tokens, lengths = encode(tokenizer, captions)
    return texts_of(*augmentation(np.arange(len(captions)), tokens, lengths, seed))


def slips(text: str) -> set[str]:
    """The text with two neighbouring Chinese characters swapped, or one dropped; and the text itself."""
    places = [place for place, character in enumerate(text) if "一" <= character <= "龥"]
    results = {text}
    for place, following in zip(places, places[1:], strict=False):
        if not text[place + 1 : following].strip():
            swapped = list(text)
            swapped[place], swapped[following] = text[following], text[place]
            results.add("".join(swapped))
    if len(places) >= 3:
        results |= {text[:place] + " " + text[place + 1 :] for place in places}
    return results


def test_the_tokens_are_those_of_the_changed_text(tokenizer):
    augmentation = TextAugmentation(tokenizer, LONGEST, read_templates(TEMPLATES), 0.75, noise=0.5)
    found = changed(augmentation, tokenizer, CAPTIONS * 200)
    for number, caption in enumerate(CAPTIONS):
        texts = {template.replace("{}", text) for template in ["{}", *TEMPLATES] for text in slips(caption)}
        possible = set(map(tuple, tokenizer(list(texts), max_length=LONGEST, truncation=True)["input_ids"]))
        results = set(found[number :: len(CAPTIONS)])
        assert results <= possible, caption
        assert len(results) > len(possible) / 3


def test_the_shares_are_those_asked_for(tokenizer):
    plain = texts_of(*encode(tokenizer, ["小狗"]))[0]
    for keys, share in (({"template_probability": 0.3}, 0.3), ({"noise": 0.4, "template_probability": 0}, 0.2)):
        augmentation = TextAugmentation(tokenizer, LONGEST, read_templates(TEMPLATES), **keys)
        found = changed(augmentation, tokenizer, ["小狗"] * 4000)  # too short to drop a character
        assert np.mean([tokens != plain for tokens in found]) == pytest.approx(share, abs=0.03)


def test_a_change_depends_on_row_and_seed_alone(tokenizer):
    augmentation = TextAugmentation(tokenizer, LONGEST, read_templates(TEMPLATES), noise=0.5)
    captions = np.array(CAPTIONS * 5)
    whole = changed(augmentation, tokenizer, captions.tolist())
    rows = np.random.default_rng(0).permutation(len(captions))[:7]
    assert texts_of(*augmentation(rows, *encode(tokenizer, captions[rows].tolist()), (0, 0))) == [
        whole[row] for row in rows
    ]
    assert whole != changed(augmentation, tokenizer, captions.tolist(), seed=(0, 1))
    empty = np.empty(0, np.int64)
    assert [len(part) for part in augmentation(empty, empty, empty, (0, 0))] == [0, 0]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (["一张小狗"], r"template 1: '一张小狗' has no \{\}. Write \{\} once"),
        (["{}。", "{}的{}"], r"template 2: .* has \{\} 2 times"),
        ([], "the list has no template"),
        (["{}渲"], "the vocabulary lacks a word of '{}渲', which would be"),
        (["photo of{}"], "a caption such as 'dog' would merge .* Put a space beside"),
        (["一张我想找小狗的照片{}"], "leaves no room for a caption in the 12 tokens"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(tokenizer, templates, message):
    with pytest.raises(ValueError, match=message):
        TextAugmentation(tokenizer, LONGEST, read_templates(templates))


def test_slips_need_a_tokenizer_that_separates_chinese_characters(tokenizer, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(tokenizer.vocab, key=tokenizer.vocab.get)), encoding="utf-8")
    other = BertTokenizerFast(str(tmp_path / "vocab.txt"), tokenize_chinese_chars=False)
    with pytest.raises(ValueError, match="`text_noise` changes Chinese characters"):
        TextAugmentation(other, LONGEST, noise=0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# asked\n\n{}。\n小狗\n".encode(), "templates.txt, line 4: '小狗' has no"),
        (b"# nothing\n", "templates.txt has no template"),
        (b"", "templates.txt holds no text"),
        ("{}的照片".encode("gbk"), "templates.txt is not UTF-8"),
        (None, "there is no file .*templates.txt"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_before_anything_is_loaded(train_args, tmp_path, content, message):
    path = tmp_path / "templates.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"`text_templates`: .*{message}"):
        load_arguments(train_args(text_templates=str(path), clip_pretrain_path="no/such"))


def test_a_probability_without_templates_is_an_error(train_args):
    with pytest.raises(ValueError, match="`text_template_probability` is 0.3, but there are no `text_templates`"):
        load_arguments(train_args(text_template_probability=0.3))


def test_a_check_of_the_data_names_a_template_that_would_stop_the_run(train_args):
    args = load_arguments(train_args(text_templates=["一只{}渲"], check_data=True))
    assert "the vocabulary lacks a word of '一只{}渲'" in check_data(args, *load_model(args)).problems[0]


def test_training_changes_the_texts_and_nothing_else(trainer, data, tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("\ufeff# how people ask\n一只{}\n", encoding="utf-8")
    keys = dict(test_file=str(data / "train.csv"), image_feature_cache="auto", train_sampling_strategy="sequential")
    plain, asked = trainer(**keys), trainer(**keys, text_templates=str(file), text_template_probability=1)
    one, other = (next(iter(built.get_train_dataloader())) for built in (plain, asked))
    for ids, longer in zip(one["model_inputs"]["input_ids"], other["model_inputs"]["input_ids"], strict=True):
        assert ids[ids > 0].tolist()[1:] == longer[longer > 0].tolist()[3:]
    assert one["ids"].equal(other["ids"])
    assert one["model_inputs"]["vision_pooler_output"].equal(other["model_inputs"]["vision_pooler_output"])
    assert plain.evaluate().items() >= {k: v for k, v in asked.evaluate().items() if "recall" in k}.items()


def test_another_content_of_the_file_is_another_recipe(train_args, tmp_path):
    def recipe(name: str, content: str, **keys):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return run_of(load_arguments(train_args(text_templates=str(tmp_path / name), **keys))).recipe

    one, other = recipe("one.txt", "{}。\n"), recipe("one.txt", "{}？\n")
    assert one["text_templates"] != other["text_templates"] and one["text_templates"].startswith("1 templates (")
    assert one == recipe("moved.txt", "# the same\n{}。\n")
