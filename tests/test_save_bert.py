"""save_bert_checkpoint.py: save the text tower as a BERT, through the command line."""

import json
import os
import sys

import pytest
import torch
from conftest import CAPTIONS, run_python
from transformers import BertModel, BertTokenizer, BertTokenizerFast

import save_bert_checkpoint
from component.export.formats import export
from component.ground.command import run_script
from component.ground.lock import sole_writer
from component.model import BertCLIPModel


@pytest.fixture(scope="module")
def bert_out(bert_clip_path, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("out") / "deep" / "bert")
    done = run_python("save_bert_checkpoint.py", "--model", bert_clip_path, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert output in done.stdout
    return output


@pytest.mark.parametrize("tokenizer_class", [BertTokenizer, BertTokenizerFast])
def test_saved_bert_gives_the_outputs_of_the_text_tower_bit_for_bit(bert_clip_path, bert_out, tokenizer_class):
    tower = BertCLIPModel.from_pretrained(bert_clip_path).text_model.eval()
    bert, info = BertModel.from_pretrained(bert_out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = tokenizer_class.from_pretrained(bert_out)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = tower(**inputs), bert.eval()(**inputs)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_saved_tokenizer_equals_that_of_the_checkpoint(bert_clip_path, bert_out):
    text = "一只小狗 NA 在摇尾巴 x"
    expected = BertTokenizerFast.from_pretrained(bert_clip_path)(text)["input_ids"]
    assert BertTokenizer.from_pretrained(bert_out)(text)["input_ids"] == expected
    assert BertTokenizer.from_pretrained(bert_out).model_max_length == 24


def test_config_is_that_of_a_plain_bert(bert_out):
    with open(os.path.join(bert_out, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])


def test_half_precision_weights_do_not_change(bert_clip_path, tmp_path):
    half = str(tmp_path / "half")
    model = BertCLIPModel.from_pretrained(bert_clip_path).half()
    model.save_pretrained(half)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        os.link(os.path.join(bert_clip_path, name), os.path.join(half, name))
    export(half, "bert", str(tmp_path / "bert"))
    bert = BertModel.from_pretrained(str(tmp_path / "bert"), dtype="auto")
    assert bert.dtype == torch.float16
    for name, tensor in model.text_model.state_dict().items():
        assert torch.equal(bert.state_dict()[name], tensor)


def test_a_folder_with_files_is_refused_without_overwrite(bert_clip_path, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty.*--overwrite"):
        export(bert_clip_path, "bert", str(tmp_path), overwrite=False)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_overwrite_replaces_the_model_and_leaves_other_files(bert_clip_path, tmp_path):
    output = tmp_path / "bert"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    (output / "config.json").write_text("old")
    export(bert_clip_path, "bert", f"{output}/", overwrite=True)
    assert (output / "mine.txt").read_text() == "mine"
    BertModel.from_pretrained(str(output))
    assert os.listdir(tmp_path) == ["bert"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_save_changes_nothing_and_can_be_repeated(bert_clip_path, tmp_path, monkeypatch, overwrite):
    old = {"mine.txt": "mine", "config.json": "old"} if overwrite else {}
    (tmp_path / "bert").mkdir()
    for name, content in old.items():
        (tmp_path / "bert" / name).write_text(content)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("component.export.bert.save_tokenizer", full)
        export(bert_clip_path, "bert", str(tmp_path / "bert"), overwrite)
    assert {path.name: path.read_text() for path in (tmp_path / "bert").iterdir()} == old
    assert os.listdir(tmp_path) == ["bert"]
    export(bert_clip_path, "bert", str(tmp_path / "bert"), overwrite)
    BertModel.from_pretrained(str(tmp_path / "bert"))


def test_the_model_itself_is_not_replaced(bert_clip_path, tmp_path):
    (tmp_path / "link").symlink_to(bert_clip_path)
    with pytest.raises(ValueError, match="is the model itself"):
        export(bert_clip_path, "bert", str(tmp_path / "link"), overwrite=True)


def test_two_saves_to_one_folder_do_not_mix(bert_clip_path, tmp_path):
    with sole_writer(str(tmp_path / "bert")), pytest.raises(ValueError, match="being written by another run"):
        export(bert_clip_path, "bert", str(tmp_path / "bert"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("bad", ["clip_path", "nowhere/at/all"])
def test_a_folder_that_is_not_a_checkpoint_is_refused_in_one_line(bad, request, tmp_path, monkeypatch, capsys):
    path = request.getfixturevalue(bad) if bad == "clip_path" else bad
    capsys.readouterr()  # of the fixture
    options = ["--model", path, "--output", str(tmp_path / "bert")]
    monkeypatch.setattr(sys, "argv", ["save_bert_checkpoint.py", *options])
    assert run_script(save_bert_checkpoint.main) == 2
    error = capsys.readouterr().err
    assert path in error and error.count("\n") == 1
    assert not os.path.exists(tmp_path / "bert")
