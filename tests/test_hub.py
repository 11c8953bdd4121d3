"""A saved folder loaded by transformers alone, without this repository."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ENVIRONMENT, EVERY_TRANSFORMERS, ROOT
from hub_server import HubServer
from huggingface_hub import ModelCard

from component.checkpoint import load_checkpoint
from component.configuration import BertCLIPConfig
from component.model import BertCLIPModel
from component.modeling_bertclip import __file__ as CODE
from component.processor import load_processor, save_processor

FOLDERS = ("pooler", "pooler_bias", "cls", "cls_bias")
ELSEWHERE = os.path.join(os.path.dirname(__file__), "without_repository.py")


@pytest.fixture(scope="module")
def folders(bert_clip_path, chinese_clip_path, tmp_path_factory):
    """Folders as training saves them, with both poolings, with and without logit_bias."""
    root = tmp_path_factory.mktemp("hub")
    for name in FOLDERS:
        source = bert_clip_path if name.startswith("pooler") else chinese_clip_path
        model = BertCLIPModel.from_pretrained(source)
        model.set_loss("siglip" if name.endswith("bias") else "clip")
        model.save_pretrained(root / name)
        save_processor(load_processor(source, max_length=24), str(root / name))
    return root


@pytest.fixture(scope="module", params=EVERY_TRANSFORMERS)
def elsewhere(request, folders, tmp_path_factory) -> dict:
    """The results of without_repository.py for each folder."""
    output = tmp_path_factory.mktemp("elsewhere")
    environment = {**ENVIRONMENT, "HF_HOME": str(output / "hf"), "HF_HUB_OFFLINE": "1", **request.param}
    command = [sys.executable, ELSEWHERE, output, *(folders / name for name in FOLDERS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: torch.load(output / f"{name}.pt", weights_only=False) for name in FOLDERS}


@pytest.fixture(params=FOLDERS)
def both(request, folders, elsewhere) -> tuple:
    """Our model, and the results for its folder without this repository."""
    return load_checkpoint(str(folders / request.param))[0], elsewhere[request.param]


def test_auto_model_has_our_weights_key_for_key_and_no_others(both):
    ours, theirs = both
    assert theirs["keys"] == sorted(ours.state_dict()) and not any(theirs["info"].values())
    assert theirs["config"]["model_type"] == "clip"
    assert theirs["config"]["vision_config"]["projection_dim"] == theirs["config"]["projection_dim"] == 16


def test_its_outputs_equal_ours(both):
    ours, theirs = both
    outputs = ours(**theirs["inputs"], return_loss=True)
    for key, value in theirs["both"].items():
        torch.testing.assert_close(value, outputs[key], atol=1e-5, rtol=1e-6)


def test_one_side_alone_is_embedded(both):
    ours, theirs = both
    inputs = dict(theirs["inputs"])
    images = ours.get_image_features(inputs.pop("pixel_values"))
    for found, features in ((theirs["texts"], ours.get_text_features(**inputs)), (theirs["images"], images)):
        torch.testing.assert_close(found["features"], features, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["embeds"], torch.nn.functional.normalize(features), atol=1e-6, rtol=1e-6)
    assert theirs["sides"] == [["text_embeds", "text_model_output"], ["image_embeds", "vision_model_output"]]


def test_pipelines_load_it(both):
    ours, theirs = both
    assert theirs["zero_shot_class"] == ("BertCLIPModel", "BertCLIPModel")
    inputs = {key: value[:2] for key, value in theirs["inputs"].items()}
    probabilities = ours(**inputs).logits_per_image[0].softmax(dim=0)
    found = [score["score"] for score in theirs["zero_shot"]]
    torch.testing.assert_close(torch.tensor(found), probabilities.sort(descending=True).values, atol=1e-4, rtol=0)
    embeds = ours(**inputs).image_embeds[:1]
    torch.testing.assert_close(torch.tensor(theirs["feature_extraction"]), embeds, atol=1e-5, rtol=0)


def test_transformers_own_vision_towers_load_it(both):
    ours, theirs = both
    pixel_values = theirs["inputs"]["pixel_values"]
    torch.testing.assert_close(theirs["vision"], ours.vision_model(pixel_values).pooler_output)
    torch.testing.assert_close(theirs["projected"], ours.get_image_features(pixel_values))


def test_a_folder_that_is_saved_again_still_loads(both, folders, elsewhere, tmp_path):
    ours, theirs = both
    torch.testing.assert_close(theirs["saved_again"], theirs["both"]["text_embeds"])
    ours.save_pretrained(tmp_path)
    BertCLIPModel.from_pretrained(f"{ours.name_or_path}-again").save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"]["AutoModel"] == "modeling_bertclip.BertCLIPModel"
        assert (folder / "modeling_bertclip.py").read_text() == open(CODE).read()


def test_the_origin_of_a_folder_is_not_written_into_the_next(folders, tmp_path):
    shutil.copytree(folders / "cls", tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["auto_map"] = {key: f"somebody/clip--{value}" for key, value in config["auto_map"].items()}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    BertCLIPConfig.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text()


def test_loading_a_plain_clip_does_not_change(clip_path):
    from transformers import AutoModel

    assert type(AutoModel.from_pretrained(clip_path)).__module__.startswith("transformers.")


@pytest.fixture
def hub():
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_pushed_model_loads_and_has_our_card(hub, train_args, data, tmp_path):
    args_file = train_args(
        test_file=str(data / "train.csv"),
        push_to_hub=True,
        hub_model_id="somebody/clip",
        hub_always_push=True,
        hub_token="hf_none",
        model_license="apache-2.0",
        max_steps=2,
        save_steps=1,
    )
    environment = {**ENVIRONMENT, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "train_clip.py", "--train_args_file", args_file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr

    for commit in hub.commits:  # those of the checkpoints too
        assert {"config.json", "model.safetensors", "modeling_bertclip.py", "tokenizer.json"} <= set(commit)
    last = hub.commits[-1]
    card = ModelCard(last["README.md"].decode())
    assert card.data.license == "apache-2.0" and "trust_remote_code=True" in card.text[:200]
    results = json.loads((tmp_path / "output" / "test_results.json").read_text())
    recall = {result.metric_name: result.metric_value for result in card.data.eval_results}["mean_recall"]
    assert recall == results["eval_mean_recall"]
    (tmp_path / "pushed").mkdir()
    for name in ("config.json", "model.safetensors", "modeling_bertclip.py"):
        (tmp_path / "pushed" / name).write_bytes(last[name])
    pushed = BertCLIPModel.from_pretrained(tmp_path / "pushed").state_dict()
    final = BertCLIPModel.from_pretrained(tmp_path / "output" / "checkpoint-final").state_dict()
    assert all(torch.equal(value, final[key]) for key, value in pushed.items())
