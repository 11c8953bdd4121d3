"""The examples of the published README, unchanged, and the layout of the published weights."""

import json
import os
import shutil
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture
def image(data) -> Image.Image:
    return Image.open(data / "images" / "0.png")


@pytest.fixture
def published_path(bert_clip_path, tmp_path) -> str:
    """The folder layout of YeungNLP/clip-vit-bert-chinese-1M, written by transformers 4.1x."""
    path = str(tmp_path / "published")
    shutil.copytree(bert_clip_path, path)
    weights = load_file(f"{path}/model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(weights, f"{path}/pytorch_model.bin")
    for name in ("model.safetensors", "processor_config.json"):
        os.remove(f"{path}/{name}")
    with open(f"{path}/config.json") as file:
        config = json.load(file)
    text = config["text_config"]
    config |= {"text_config": {**text, "hidden_size": 48}, "text_config_dict": text, "vision_config_dict": None}
    old = dict(feature_extractor_type="CLIPFeatureExtractor", size=32, crop_size=32, resample=3, do_resize=True)
    old |= dict(do_center_crop=True, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    with open(f"{path}/config.json", "w") as file:
        json.dump(config, file)
    with open(f"{path}/preprocessor_config.json", "w") as file:
        json.dump(old, file)
    return path


@pytest.mark.parametrize("with_tokenizer_class_line", [True, False])
def test_image_text_example(bert_clip_path, image, monkeypatch, with_tokenizer_class_line):
    from transformers import CLIPProcessor

    from component.model import BertCLIPModel

    if with_tokenizer_class_line:
        monkeypatch.setattr(CLIPProcessor, "tokenizer_class", "BertTokenizerFast", raising=False)
    model = BertCLIPModel.from_pretrained(bert_clip_path)
    processor = CLIPProcessor.from_pretrained(bert_clip_path)
    inputs = processor(text=["一只小狗在摇尾巴", "一只小猪在吃饭"], images=image, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids")
    outputs = model(**inputs)

    probabilities = outputs.logits_per_image.softmax(dim=1)
    assert probabilities.shape == (1, 2) and torch.allclose(probabilities.sum(), torch.tensor(1.0))
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    assert outputs.text_embeds.shape == (2, 16) and outputs.image_embeds.shape == (1, 16)


def test_image_tower_example(bert_clip_path, image):
    from transformers import CLIPProcessor, CLIPVisionModel

    from component.model import BertCLIPModel

    tower = CLIPVisionModel.from_pretrained(bert_clip_path)
    processor = CLIPProcessor.from_pretrained(bert_clip_path)
    inputs = processor(images=image, return_tensors="pt")
    outputs = tower(**inputs)

    inside = BertCLIPModel.from_pretrained(bert_clip_path).vision_model(**inputs)
    assert torch.equal(outputs.last_hidden_state, inside.last_hidden_state)
    assert torch.equal(outputs.pooler_output, inside.pooler_output)


def test_text_tower_example(bert_clip_path):
    from transformers import BertTokenizerFast

    from component.model import BertCLIPModel, BertCLIPTextModel

    tokenizer = BertTokenizerFast.from_pretrained(bert_clip_path)
    tower = BertCLIPTextModel.from_pretrained(bert_clip_path)
    inputs = tokenizer(["一只小狗在摇尾巴", "红色的圆"], return_tensors="pt", padding=True)
    outputs = tower(**inputs)

    inside = BertCLIPModel.from_pretrained(bert_clip_path).text_model(**inputs)
    assert torch.equal(outputs.pooler_output, inside.pooler_output)


@pytest.mark.parametrize("model_class", ["BertCLIPModel", "BertCLIPTextModel"])
def test_published_weights_load_silently(published_path, bert_clip_path, model_class, capfd):
    import component.model

    model_class = getattr(component.model, model_class)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = model_class.from_pretrained(published_path, output_loading_info=True)

    assert not any(report.values())
    assert capfd.readouterr().err == ""
    ours = model_class.from_pretrained(bert_clip_path).state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())


def test_published_processor_loads(published_path, image, capfd):
    from transformers import CLIPProcessor

    from component.processor import load_processor

    for processor in (CLIPProcessor.from_pretrained(published_path), load_processor(published_path)):
        pixel_values = processor(text=["小狗"], images=image, return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 32, 32)


def test_a_long_text_is_cut(bert_clip_path, image):
    from transformers import CLIPProcessor

    from component.model import BertCLIPModel

    processor = CLIPProcessor.from_pretrained(bert_clip_path)
    inputs = processor(text=["小狗" * 40, "小猪"], images=image, return_tensors="pt", padding=True)
    assert inputs["input_ids"].shape == (2, 24)
    assert inputs["input_ids"][0, -1] == processor.tokenizer.sep_token_id
    BertCLIPModel.from_pretrained(bert_clip_path)(**inputs)


def test_saved_tokenizer_does_not_remember_the_last_call(bert_clip_path, tmp_path):
    from component.processor import load_processor, save_processor

    processor = load_processor(bert_clip_path)
    processor(text=["小狗", "红色的圆"], padding="max_length", truncation=True, max_length=7)
    save_processor(processor, str(tmp_path))

    with open(tmp_path / "tokenizer.json", encoding="utf-8") as file:
        saved = json.load(file)
    assert saved["truncation"] is None and saved["padding"] is None
    assert load_processor(str(tmp_path)).tokenizer.model_max_length == 24
    assert {"preprocessor_config.json", "vocab.txt"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("written", ["CLIPFeatureExtractor", "CLIPImageProcessor"])
@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_processor_files_of_every_version_load_with_transformers_own_classes(published_path, image, written, key):
    from transformers import AutoProcessor, CLIPProcessor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the other is a dummy in 5.17

    from component.model import BertCLIPModel  # noqa: F401

    file = f"{published_path}/preprocessor_config.json"
    with open(file) as content:
        config = json.load(content)
    del config["feature_extractor_type"]
    with open(file, "w") as content:
        json.dump({**config, key: written, "size": {"shortest_edge": 32}}, content)
    for processor_class in (CLIPProcessor, AutoProcessor, AutoImageProcessor):
        processor = processor_class.from_pretrained(published_path)
        assert processor(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
        processor.save_pretrained(f"{published_path}/again")
        for name in os.listdir(f"{published_path}/again"):
            assert "FeatureExtractor" not in open(f"{published_path}/again/{name}").read()
