"""Pretrained folders: what is refused, what gets new weights with a warning, and what loads silently."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, ENVIRONMENT, ROOT, python
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertTokenizerFast,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    RobertaConfig,
    RobertaModel,
)

from component.argument import load_arguments
from component.checkpoint import load_checkpoint
from component.embedding import embed_texts
from component.export.formats import export
from component.filter.clip_score import ClipScorer
from component.hub import pretrained
from component.hub.model_card import license_of
from component.hub.tokenizer import load_tokenizer, save_tokenizer
from component.training.build import load_model
from component.training.data import load_datasets
from component.training.preflight import preflight

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=40)


@pytest.fixture
def towers(train_args):
    """Load the model that `train_clip.py` would train; keyword arguments are keys of the JSON."""
    return lambda **keys: load_model(load_arguments(train_args(**keys)))[0]


@pytest.fixture
def copy(tmp_path):
    """Copy a folder and change keys of its config.json (None: remove the key)."""

    def copy(path: str, **config) -> str:
        new = str(tmp_path / "copy")
        shutil.copytree(path, new)
        with open(f"{new}/config.json", encoding="utf-8") as file:
            config = {**json.load(file), **config}
        with open(f"{new}/config.json", "w", encoding="utf-8") as file:
            json.dump({key: value for key, value in config.items() if value is not None}, file)
        return new

    return copy


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("component")]


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- text towers ----


@pytest.mark.parametrize(
    "kind",
    "ernie modernbert roformer roberta xlm-roberta albert distilbert electra deberta-v2 gpt2 t5 megatron-bert".split(),
)
def test_a_text_tower_of_another_kind_is_refused_with_folder_and_kind(towers, copy, bert_path, kind):
    path = copy(bert_path, model_type=kind, architectures=None)
    with pytest.raises(ValueError, match=f"`bert_pretrain_path`: {path} .*its model_type is {kind}. A BERT works"):
        towers(bert_pretrain_path=path)


SETTINGS = [
    ("position_embedding_type", "relative_key", "transformers 5 no longer computes"),
    ("pruned_heads", {"0": [1]}, "transformers 5 no longer computes"),
    ("is_decoder", True, "makes it a decoder"),
    ("add_cross_attention", True, "makes it a decoder"),
    ("hidden_act", "gleu", "transformers does not have"),
    ("pad_token_id", 10**6, "but vocab_size"),
]


@pytest.mark.parametrize(("key", "value", "fault"), SETTINGS)
def test_a_setting_that_transformers_does_not_compute_is_refused(
    towers, copy, bert_path, bert_clip_path, key, value, fault
):
    """Nothing else shows it: names and shapes of the weights are the same."""
    path = copy(bert_path, **{key: value})
    with pytest.raises(ValueError, match=f"`bert_pretrain_path`: {path} .*config.json has {key} .*{fault}") as error:
        towers(bert_pretrain_path=path)
    one_line(error)
    shutil.rmtree(path)
    with open(f"{bert_clip_path}/config.json", encoding="utf-8") as file:
        text_config = json.load(file)["text_config"]
    with pytest.raises(ValueError, match=f"config.json has {key} .*{fault}"):
        load_checkpoint(copy(bert_clip_path, text_config={**text_config, key: value}))


@pytest.mark.parametrize(("key", "value"), [("num_channels", 1), ("hidden_act", "gleu")])
def test_a_setting_of_the_image_tower_is_refused_too(towers, copy, clip_path, key, value):
    with open(f"{clip_path}/config.json", encoding="utf-8") as file:
        vision_config = json.load(file)["vision_config"]
    with pytest.raises(ValueError, match=f"`clip_pretrain_path`: .*config.json has {key}"):
        towers(clip_pretrain_path=copy(clip_path, vision_config={**vision_config, key: value}))


def test_a_class_that_contradicts_its_kind_is_refused(towers, bert_path, tmp_path, copy):
    """RoBERTa has BERT's names and shapes, but other positions, which nothing else shows."""
    RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=24)).save_pretrained(tmp_path / "roberta")
    shutil.copy(f"{bert_path}/vocab.txt", tmp_path / "roberta")
    for kind in ("bert", None):
        path = copy(str(tmp_path / "roberta"), model_type=kind)
        with pytest.raises(ValueError, match="its model_type is roberta"):
            towers(bert_pretrain_path=path)
        shutil.rmtree(path)


def test_a_wrong_config_is_found_by_the_weights(towers, copy, tmp_path, bert_path):
    albert = AlbertModel(AlbertConfig(**SMALL, embedding_size=32, max_position_embeddings=24))
    albert.save_pretrained(tmp_path / "albert")
    path = copy(str(tmp_path / "albert"), model_type="bert", architectures=None)
    with pytest.raises(ValueError, match=r"is not a BERT for the text tower: \d+ of its weights are missing") as error:
        towers(bert_pretrain_path=path)
    assert path in one_line(error)


@pytest.mark.parametrize("lacking", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"])
def test_the_error_for_a_missing_weight_of_a_bert_names_it(towers, copy, bert_path, lacking):
    path = copy(bert_path)
    weights = load_file(f"{path}/model.safetensors")
    del weights[lacking]
    save_file(weights, f"{path}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"the first: {lacking} is missing"):
        towers(bert_pretrain_path=path)


def test_a_bert_whose_shapes_differ_from_its_config_is_refused(towers, copy, bert_path):
    with pytest.raises(ValueError, match=r"word_embeddings.weight is \(\d+, 32\), but \(99, 32\) by config.json"):
        towers(bert_pretrain_path=copy(bert_path, vocab_size=99))


def test_layers_that_the_config_does_not_have_are_counted(towers, copy, bert_path, caplog):
    model = towers(bert_pretrain_path=copy(bert_path, num_hidden_layers=1))
    assert len(model.text_model.encoder.layer) == 1
    assert "has 16 weights that the model does not use (the first: encoder.layer.1" in caplog.text


def test_a_bert_without_a_pooler_gets_a_new_one_with_a_warning(towers, copy, bert_path, caplog):
    path = copy(bert_path)
    weights = load_file(f"{path}/model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, f"{path}/model.safetensors", {"format": "pt"})
    model = towers(bert_pretrain_path=path)
    assert said(caplog) == [
        f"{path} has no pooler.dense.bias and pooler.dense.weight: initialised at random, to be trained."
    ]
    assert 0 < model.text_model.pooler.dense.weight.std() < 0.3
    assert torch.equal(
        model.text_model.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"]
    )


@pytest.mark.parametrize("kind", ["bert", None])
def test_a_bert_with_prefix_heads_and_old_names_loads_silently(towers, copy, bert_path, kind, capfd, caplog):
    path = copy(bert_path, model_type=kind, architectures=["BertForMaskedLM"])
    weights = load_file(f"{path}/model.safetensors")
    old = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    old |= {"cls.predictions.bias": torch.zeros(40), "bert.embeddings.position_ids": torch.arange(24)[None]}
    os.remove(f"{path}/model.safetensors")
    torch.save(old, f"{path}/pytorch_model.bin")
    model = towers(bert_pretrain_path=path)
    for name, value in model.text_model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert capfd.readouterr().err == "" and not said(caplog)


# ---- image towers ----


@pytest.mark.parametrize("kind", ["siglip2", "swin", "convnext", "bert", "blip", "altclip"])
def test_an_image_tower_of_another_kind_is_refused(towers, copy, clip_path, kind):
    path = copy(clip_path, model_type=kind, architectures=None)
    with pytest.raises(ValueError, match=f"`clip_pretrain_path`: {path} .*model_type is {kind}. The image tower of"):
        towers(clip_pretrain_path=path)


@pytest.mark.parametrize("model_class", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_a_single_image_tower_gets_new_projections_with_a_warning(towers, clip_path, tmp_path, model_class, caplog):
    path = str(tmp_path / "vision")
    config = CLIPModel.from_pretrained(clip_path).config.vision_config
    config.projection_dim = 16
    tower = model_class.from_pretrained(clip_path, config=config)
    tower.save_pretrained(path)
    shutil.copy(f"{clip_path}/preprocessor_config.json", path)
    model = towers(clip_pretrain_path=path)
    whole = CLIPModel.from_pretrained(clip_path).vision_model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.vision_model.state_dict().items())
    assert model.visual_projection.weight.shape == (16, 48) and model.visual_projection.weight.requires_grad
    assert model.logit_scale.item() == pytest.approx(2.6592)
    new = [name for name in ("logit_scale", "visual_projection.weight") if name not in tower.state_dict()]
    assert said(caplog) == [f"{path} has no {' and '.join(new)}: initialised at random, to be trained."]


def test_a_clip_without_its_image_tower_is_refused(towers, clip_path, copy, tmp_path):
    path = copy(clip_path, architectures=None)
    text = CLIPModel.from_pretrained(clip_path).state_dict()
    text = {key: value for key, value in text.items() if key.startswith("text_model.")}
    save_file(text, f"{path}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not an image tower: .*vision_model.*is missing"):
        towers(clip_pretrain_path=path)


def test_a_projection_whose_width_differs_from_its_config_is_refused(towers, copy, clip_path):
    with pytest.raises(ValueError, match=r"visual_projection.weight is \(16, 48\), but \(24, 48\)"):
        towers(clip_pretrain_path=copy(clip_path, projection_dim=24))


def test_an_image_processor_for_another_size_is_refused(towers, copy, clip_path):
    path = copy(clip_path)
    with open(f"{path}/preprocessor_config.json", "w") as file:
        json.dump({"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}, file)
    with pytest.raises(ValueError, match="makes images of 64 × 64 pixels, but its image tower takes 32 × 32"):
        towers(clip_pretrain_path=path)


# ---- whole folders: one check for training, evaluation, prediction, filter and save_bert ----


@pytest.fixture(params=["training", "inference", "filter", "save_bert"])
def load_whole(request, towers, tmp_path):
    return {
        "training": lambda path: towers(clip_pretrain_path=path, load_from_bert_clip=True),
        "inference": load_checkpoint,
        "filter": ClipScorer,
        "save_bert": lambda path: export(path, "bert", str(tmp_path / "bert")),
    }[request.param]


def test_a_plain_clip_is_not_a_bert_clip(load_whole, clip_path):
    with pytest.raises(ValueError, match="is not a BertCLIP checkpoint: .* pair a CLIP with a BERT") as error:
        load_whole(clip_path)
    assert clip_path in one_line(error)


@pytest.mark.parametrize("lacking", ["text_model.pooler.dense.weight", "text_projection.weight", "logit_scale"])
def test_the_error_for_a_missing_weight_of_a_bert_clip_names_it(load_whole, copy, bert_clip_path, lacking):
    path = copy(bert_clip_path)
    weights = load_file(f"{path}/model.safetensors")
    del weights[lacking]
    save_file(weights, f"{path}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{path} .*the first: {lacking} is missing"):
        load_whole(path)


def test_a_bert_clip_whose_shapes_differ_from_its_config_is_refused(load_whole, copy, bert_clip_path):
    with pytest.raises(ValueError, match=r"text_projection.weight is \(16, 32\), but \(8, 32\) by config.json"):
        load_whole(copy(bert_clip_path, projection_dim=8))


def _truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


FAULTS = {
    "empty folder": lambda path: (shutil.rmtree(path), os.mkdir(path)),
    "no weights": lambda path: os.remove(f"{path}/model.safetensors"),
    "half weights": lambda path: _truncate(f"{path}/model.safetensors"),
    "empty weights": lambda path: os.truncate(f"{path}/model.safetensors", 0),
    "no json": lambda path: _truncate(f"{path}/config.json"),
    "json of a list": lambda path: _write(f"{path}/config.json", "[]"),
    "binary json": lambda path: _write(f"{path}/config.json", "\udcff"),
    "safetensors named bin": lambda path: os.rename(f"{path}/model.safetensors", f"{path}/pytorch_model.bin"),
    "a pointer": lambda path: _write(f"{path}/model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    "a lost shard": lambda path: (
        os.remove(f"{path}/model.safetensors"),
        _write(f"{path}/model.safetensors.index.json", '{"metadata": {}, "weight_map": {"x": "1.safetensors"}}'),
    ),
    "text for a width": lambda path: _write(f"{path}/config.json", '{"model_type": "clip", "projection_dim": "x"}'),
    "a null tower": lambda path: _write(f"{path}/config.json", '{"model_type": "clip", "vision_config": 3}'),
    "lacking keys": lambda path: _write(
        f"{path}/config.json", '{"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1}}'
    ),
}


def _write(path, text):
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_error_for_a_damaged_folder_is_one_line_with_its_name(copy, bert_clip_path, towers, fault):
    path = copy(bert_clip_path)
    FAULTS[fault](path)
    for load in (load_checkpoint, lambda path: towers(clip_pretrain_path=path, load_from_bert_clip=True)):
        with pytest.raises(ValueError) as error:
            load(path)
        assert path in one_line(error) and len(str(error.value)) < 500


@pytest.mark.parametrize("fault", FAULTS)
def test_the_error_for_a_damaged_bert_is_one_line_with_its_name(copy, bert_path, towers, fault):
    path = copy(bert_path)
    FAULTS[fault](path)
    with pytest.raises(ValueError) as error:
        towers(bert_pretrain_path=path)
    assert path in one_line(error) and len(str(error.value)) < 500


# ---- tokenizer, embeddings and texts ----


def _add_token(path: str) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(path)
    tokenizer.add_tokens(["小狗"])
    tokenizer.save_pretrained(path)


@pytest.fixture
def checked(train_args, data):
    """Do what train_clip.py does before the first step."""

    def check(texts: list[str], **keys) -> None:
        rows = [f"{text},{number}.png" for number, text in enumerate(texts)]
        (data / "t.csv").write_text("\n".join(["text,filename", *rows, ""]), encoding="utf-8")
        args = load_arguments(train_args(train_file=str(data / "t.csv"), **keys))
        model, processor = load_model(args)
        preflight(args, model, *load_datasets(args, processor))

    return check


@pytest.mark.parametrize("fault", ["missing", "empty"])
def test_a_bert_without_a_vocabulary_is_refused(towers, copy, bert_path, fault):
    path = copy(bert_path)
    {"missing": os.remove, "empty": lambda file: os.truncate(file, 0)}[fault](f"{path}/vocab.txt")
    with pytest.raises(ValueError, match=f"{path} has neither tokenizer.json nor vocab.txt with a vocabulary"):
        towers(bert_pretrain_path=path)


def test_a_bert_clip_without_a_vocabulary_is_refused(load_whole, copy, bert_clip_path):
    path = copy(bert_clip_path)
    for name in ("vocab.txt", "tokenizer.json"):
        os.remove(f"{path}/{name}")
    with pytest.raises(ValueError, match=f"{path} has neither tokenizer.json nor vocab.txt with a vocabulary"):
        load_whole(path)


def _rewrite(path: str, edit, config: dict | None = None) -> None:
    """Change tokenizer.json, and replace tokenizer_config.json."""
    with open(f"{path}/tokenizer.json", encoding="utf-8") as file:
        content = json.load(file)
    edit(content)
    _write(f"{path}/tokenizer.json", json.dumps(content))
    _write(f"{path}/tokenizer_config.json", json.dumps(config or {}))


def _in_front(*steps):
    return lambda c: c.update(normalizer={"type": "Sequence", "normalizers": [*steps, c["normalizer"]]})


PIPELINES = {
    "NFKC": _in_front({"type": "NFKC"}),
    "a replacement": _in_front({"type": "Replace", "pattern": {"String": "狗"}, "content": "猪"}),
    "short words": lambda c: c["model"].update(max_input_chars_per_word=7),
    "digits": lambda c: c.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [c["pre_tokenizer"], {"type": "Digits", "individual_digits": True}],
        }
    ),
    "no ends": lambda c: c.update(post_processor=None),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_tokenizer_with_a_pipeline_of_its_own_is_refused(copy, bert_clip_path, pipeline):
    path = copy(bert_clip_path)
    _rewrite(path, PIPELINES[pipeline])
    with pytest.raises(
        ValueError, match=f"tokenizer.json of {path} has its own .* replaces by BERT's default"
    ) as error:
        load_checkpoint(path)
    one_line(error)


@pytest.mark.parametrize("key", ["lowercase", "handle_chinese_chars"])
def test_the_settings_in_tokenizer_json_count_and_are_saved(copy, bert_clip_path, tmp_path, key):
    path = copy(bert_clip_path)
    _rewrite(path, lambda c: c["normalizer"].update({key: False}))
    texts = ["A小狗", "一只 a"]
    expected = [Tokenizer.from_file(f"{path}/tokenizer.json").encode(text).ids for text in texts]
    tokenizer = load_tokenizer(path)
    assert tokenizer(texts)["input_ids"] == expected
    save_tokenizer(tokenizer, str(tmp_path))
    assert BertTokenizerFast.from_pretrained(tmp_path)(texts)["input_ids"] == expected


def test_tokenizer_config_has_priority_over_tokenizer_json(copy, bert_clip_path):
    path = copy(bert_clip_path)
    _rewrite(path, lambda c: c["normalizer"].update(lowercase=False), {"do_lower_case": True})
    assert load_tokenizer(path).backend_tokenizer.normalizer.normalize_str("A") == "a"


def test_a_vocabulary_with_a_byte_order_mark_is_refused(towers, copy, bert_path):
    path = copy(bert_path)
    with open(f"{path}/vocab.txt", encoding="utf-8") as file:
        _write(f"{path}/vocab.txt", "\ufeff" + file.read())
    with pytest.raises(ValueError, match=r"lacks \[PAD\]. Save vocab.txt as UTF-8 without a byte order mark"):
        towers(bert_pretrain_path=path)


def test_a_special_token_in_a_text_is_text(train_args, data, bert_clip_path, tmp_path):
    """In training, in search and prediction, and with what is saved."""
    text = "小[PAD][SEP]狗"
    (data / "t.csv").write_text(f"text,filename\n{text},0.png\n", encoding="utf-8")
    args = load_arguments(train_args(train_file=str(data / "t.csv")))
    _, processor = load_model(args)
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.pad_token_id not in ids and ids.count(processor.tokenizer.sep_token_id) == 1
    assert load_datasets(args, processor)[0].table.tokens(np.array([0]))[0].tolist() == ids
    save_tokenizer(processor.tokenizer, str(tmp_path))
    assert BertTokenizerFast.from_pretrained(tmp_path)(text)["input_ids"] == ids


def test_a_token_without_an_embedding_is_an_error_before_the_first_step(checked, copy, bert_path, caplog):
    path = copy(bert_path)
    _add_token(path)
    checked(["一只小猪在吃饭"], bert_pretrain_path=path)  # only tokens that occur matter
    size = len(BertTokenizerFast.from_pretrained(path))
    assert said(caplog)[0].startswith(f"{path} has {size} tokens, but the text tower has embeddings for {size - 1}")
    with pytest.raises(
        ValueError, match=f"has a token with id {size - 1}, but .* only {size - 1} embeddings: .* tokenizer of {path}"
    ):
        checked(["一只小猪", "一只小狗"], bert_pretrain_path=path)


def test_a_text_with_a_token_without_an_embedding_is_named(copy, bert_clip_path):
    path = copy(bert_clip_path)
    _add_token(path)
    model, processor = load_checkpoint(path)
    embed_texts(model, processor, CAPTIONS[1:])
    with pytest.raises(ValueError, match="'一只小狗在摇尾巴' contains token id .* but the text tower has only"):
        embed_texts(model, processor, CAPTIONS)


@pytest.mark.parametrize(("texts", "share"), [(["红色的圆"], "0.0%"), (["红色的龘", "红色的圆圆圆"], "10.0%")])
def test_the_share_of_unknown_characters_is_logged_at_the_start(checked, texts, share, caplog):
    caplog.set_level(logging.INFO, "component")
    checked(texts)
    assert said(caplog)[-1].endswith(f"; unknown characters ([UNK]): {share}")


def test_many_unknown_characters_are_a_warning_and_nearly_all_an_error(checked, bert_path, caplog):
    checked(["红龘"])
    assert (
        f"t.csv: 50.0% of the tokens are [UNK], which the model cannot distinguish: the vocabulary of {bert_path}"
        in said(caplog)[0]
    )
    with pytest.raises(ValueError, match=f"100.0% of the tokens are .UNK.: the vocabulary of {bert_path} lacks"):
        checked(["龘龘龘"])


# ---- names and the Hub ----


@pytest.fixture
def hub(monkeypatch):
    """Use this address for the Hub, as HF_ENDPOINT does when Python starts."""

    def at(address: str) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        pretrained._refusal.cache_clear()

    yield at
    pretrained._refusal.cache_clear()


@pytest.fixture
def no_hub(hub) -> str:
    with socket.socket() as server:  # bound but not listening: connections are refused at once
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        hub(address)
        yield address


@pytest.mark.parametrize("key", ["bert_pretrain_path", "clip_pretrain_path"])
def test_the_error_for_a_mistyped_folder_names_its_key_and_the_hub_is_not_asked(
    towers, tmp_path, monkeypatch, key, no_hub
):
    monkeypatch.chdir(tmp_path)
    for path in ("data/bert-emojj", "./bert", "a/b/c", "模型/bert", "~/none"):
        with pytest.raises(ValueError, match=f"`{key}`: .* is not a model folder"):
            towers(**{key: path})
    with pytest.raises(ValueError, match="data/bert-emojj is not a model folder"):
        load_checkpoint("data/bert-emojj")


@pytest.mark.parametrize("name", ["bert-emojj", "some/bert"])
def test_the_error_for_a_hub_that_does_not_answer_names_the_key_and_what_to_do(towers, no_hub, name, capfd):
    with pytest.raises(
        ValueError, match=f"`bert_pretrain_path`: {name} is not a folder .*{no_hub}.* not answer"
    ) as error:
        towers(bert_pretrain_path=name)
    assert "HF_ENDPOINT" in one_line(error) and "local folder" in one_line(error)
    assert "Retry" not in capfd.readouterr().err


def test_an_earlier_download_is_used_if_the_hub_is_out_of_reach(no_hub, bert_clip_path, tmp_path, monkeypatch, capfd):
    commit = "0" * 40
    repository = tmp_path / "models--some--clip"
    shutil.copytree(bert_clip_path, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, processor = load_checkpoint("some/clip")
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert "Retry" not in capfd.readouterr().err


@pytest.fixture
def hub_server(hub, bert_clip_path, tmp_path, monkeypatch) -> Iterator[HubServer]:
    """A Hub with a BertCLIP, `somebody/clip`, whose downloads go to a folder of this test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = Path(bert_clip_path)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with HubServer(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(server.url)
        yield server
        server.shutdown()


def test_the_licence_of_a_hub_name_is_on_its_card_and_no_one_is_asked_for_that_of_a_folder(
    hub_server, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned").mkdir()
    assert license_of("tuned") is None and not hub_server.asked
    hub_server.files["README.md"] = b"---\nlicense: mit\n---\n"
    assert license_of("somebody/clip") == "mit"


def test_the_error_for_an_unknown_hub_name_is_one_line_with_its_key(towers, hub_server):
    expected = "`bert_pretrain_path`: some/bert is neither a folder .* nor a model of the Hub: some/bert is not a"
    with pytest.raises(ValueError, match=expected) as error:
        towers(bert_pretrain_path="some/bert")
    one_line(error)


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 503])
def test_a_server_that_serves_no_models_is_asked_once_and_reported_in_one_line(towers, hub_server, status, capfd):
    hub_server.refuse_with = status
    expected = f"`bert_pretrain_path`: some/bert is not a folder .*{hub_server.url}.*status {status}.*HF_ENDPOINT"
    with pytest.raises(ValueError, match=expected) as error:
        towers(bert_pretrain_path="some/bert")
    one_line(error)
    assert len(hub_server.asked) == 1 and capfd.readouterr().err == ""


def test_an_endpoint_that_is_not_an_address_is_refused(hub):
    hub("hf-mirror.com")
    with pytest.raises(ValueError, match=r"the Hub \(hf-mirror.com\) is not an address, which begins with https://"):
        load_checkpoint("some/clip")


def test_the_error_for_an_incomplete_download_is_one_line_with_what_to_do(hub_server, capfd):
    hub_server.files["model.safetensors"] = b"cut short"
    with pytest.raises(ValueError, match="somebody/clip cannot be loaded: .* HF_ENDPOINT") as error:
        load_checkpoint("somebody/clip")
    one_line(error)


EVERY_SCRIPT = """
train_clip --train_args_file {train_args}
evaluate_clip --model somebody/clip --test_file {data}/train.csv --image_path {data}/images --output {out}/evaluation
predict_similarity --model somebody/clip --texts 小狗 --images {data}/images/0.png
search_image index --model somebody/clip --images {data}/images --gallery {out}/gallery
search_image query --gallery {out}/gallery --text 小狗
export_model --model somebody/clip --format vision-text-dual-encoder --output {out}/export
save_bert_checkpoint --model somebody/clip --output {out}/bert
filter_data --clip_model somebody/clip --train_file {data}/train.csv --image_path {data}/images --out_file {out}/1.csv
"""


def test_every_script_loads_a_model_from_the_hub_at_hf_endpoint(hub_server, data, train_args, tmp_path):
    code = (
        "import importlib, sys\nfrom component.ground.command import run_script\n"
        "for line in sys.argv[1:]:\n"
        "    script, *sys.argv[1:] = line.split()\n"
        "    print(script, run_script(importlib.import_module(script).main))"
    )
    args_file = train_args(clip_pretrain_path="somebody/clip", load_from_bert_clip=True, max_steps=1)
    lines = EVERY_SCRIPT.format(data=data, out=tmp_path, train_args=args_file).split("\n")[1:-1]
    environment = {**ENVIRONMENT, "HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(python("-c", code, *lines), capture_output=True, text=True, cwd=ROOT, env=environment)
    ended = re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE)
    assert ended == [(line.split()[0], "0") for line in lines], done.stderr
    assert any(path.endswith("/model.safetensors") for path in hub_server.asked)
