"""The text tower in numpy embeds as the model does, or leaves the texts to the model."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from safetensors.torch import load_file, save_file

from component.checkpoint import load_identified, save_checkpoint
from component.embedding import embed_texts
from component.model import BertCLIPModel
from component.numpy_text_tower import open_text_tower
from component.processor import load_processor

TEXTS = [*CAPTIONS, "狗", "", "?!", "Nike 2024年", "小狗[SEP]红色", "长" * 60, "小" * 22, "é\u0301 ☃", "⼩狗 ☃"]


def checkpoint(source: str, folder, **text_settings) -> str:
    """A checkpoint with other settings of the text tower, and random weights for them."""
    config = BertCLIPModel.config_class.from_pretrained(source)
    for key, value in text_settings.items():
        setattr(config.text_config, key, value)
    config.text_pooling = config.text_config.text_pooling
    torch.manual_seed(5)
    model = BertCLIPModel(config)
    for value in model.parameters():
        value.data.normal_(std=0.2)
    save_checkpoint(model, load_processor(source, max_length=24), str(folder))
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"text_pooling": "pooler"},
        {"text_pooling": "cls"},
        {"hidden_act": "gelu_new", "num_hidden_layers": 3},
        {"hidden_act": "relu", "num_attention_heads": 4},
        {"layer_norm_eps": 1e-3, "max_position_embeddings": 16},
    ],
    ids=str,
)
def test_embeddings_are_those_of_the_model(bert_clip_path, tmp_path, settings):
    path = checkpoint(bert_clip_path, tmp_path / "model", **settings)
    assert open_text_tower(path) is None, "nothing is known of this model yet"
    model, processor, identity = load_identified(path)
    tower = open_text_tower(path)
    expected = embed_texts(model, processor, TEXTS).embeds.numpy()
    # Both round: values of an embedding of width 16 are up to 0.5, those of a wide one agree to 2e-7.
    np.testing.assert_allclose(tower.embed_texts(TEXTS), expected, rtol=0, atol=5e-7)
    assert tower.identity == identity and tower.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_a_chinese_clip_without_tokenizer_json_is_left_to_the_model(chinese_clip_path, tmp_path):
    path = str(shutil.copytree(chinese_clip_path, tmp_path / "model"))
    load_identified(path)
    assert open_text_tower(path) is None


def half(path):
    weights = load_file(path / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, path / "model.safetensors", {"format": "pt"})


def as_torch_file(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def with_key(file: str, **keys):
    def change(path):
        content = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(content | keys))

    return change


def with_fewer_layers(path):
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (path / "config.json").write_text(json.dumps(config))


def with_another_activation(path):
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "quick_gelu"
    (path / "config.json").write_text(json.dumps(config))


LEFT_TO_THE_MODEL = {
    "half precision": half,
    "half precision by its config": with_key("config.json", dtype="float16"),
    "weights of torch.save": as_torch_file,
    "fewer layers than weights": with_fewer_layers,
    "another activation": with_another_activation,
    "another tokenizer_config.json": with_key("tokenizer_config.json", do_lower_case=False),
}


@pytest.mark.parametrize("name", LEFT_TO_THE_MODEL)
def test_what_numpy_does_not_compute_is_left_to_the_model(bert_clip_path, tmp_path, name):
    path = shutil.copytree(bert_clip_path, tmp_path / "model")
    LEFT_TO_THE_MODEL[name](path)
    load_identified(str(path))
    assert open_text_tower(str(path)) is None


def test_a_folder_that_changes_is_left_to_the_model(bert_clip_path, tmp_path):
    path = shutil.copytree(bert_clip_path, tmp_path / "model")
    load_identified(str(path))
    assert open_text_tower(str(path)) is not None
    (path / "vocab.txt").write_text("[PAD]\n")
    assert open_text_tower(str(path)) is None
