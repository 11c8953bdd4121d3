"""The identity of a model: what changes it, what does not, and how a difference is named."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from component.checkpoint import load_checkpoint, load_identified
from component.hub.identity import ModelIdentity, identity_of


@pytest.fixture(scope="module")
def before(bert_clip_path):
    return load_identified(bert_clip_path)[2]


def edited(folder, name, edit) -> None:
    """Change the JSON of a file in place."""
    path = os.path.join(folder, name)
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    edit(content)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def swap_two_tokens(tokenizer) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["小"], vocabulary["狗"] = vocabulary["狗"], vocabulary["小"]


def negate_a_weight(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] *= -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


EDITS = {
    "hidden_act of the image tower was": ("config.json", lambda c: c["vision_config"].update(hidden_act="relu")),
    "num_attention_heads of the text tower was": (
        "config.json",
        lambda c: c["text_config"].update(num_attention_heads=c["text_config"]["num_attention_heads"] * 2),
    ),
    "layer_norm_eps of the text tower was": ("config.json", lambda c: c["text_config"].update(layer_norm_eps=0.1)),
    "image_mean of the image processor was": ("preprocessor_config.json", lambda c: c.update(image_mean=[0, 0, 0])),
    "resample of the image processor was": ("preprocessor_config.json", lambda c: c.update(resample=2)),
    "the tokenizer": ("tokenizer.json", swap_two_tokens),
    "model_max_length was": ("tokenizer_config.json", lambda c: c.update(model_max_length=7)),
}


@pytest.mark.parametrize("difference", ["the weights of the image half", *EDITS])
def test_everything_that_changes_an_embedding_changes_the_identity_and_is_named(
    difference, before, bert_clip_path, tmp_path
):
    folder = shutil.copytree(bert_clip_path, tmp_path / "model")
    if difference in EDITS:
        os.remove(folder / "processor_config.json")  # repeats preprocessor_config.json
        edited(folder, *EDITS[difference])
    else:
        negate_a_weight(folder)
    (found,) = before.differences(load_identified(str(folder))[2])
    assert found.startswith(difference)


def test_the_identity_survives_json_and_a_copy_and_other_calls(before, bert_clip_path, tmp_path):
    model, processor, again = load_identified(str(shutil.copytree(bert_clip_path, tmp_path / "copy")))
    assert again == before == ModelIdentity.from_dict(json.loads(json.dumps(before.to_dict())))
    processor(text=["猫"], padding="max_length", max_length=9, truncation=True)  # the backend remembers the options
    with torch.no_grad():
        model.logit_scale += 1  # changes no embedding
    assert identity_of(model, processor) == before


def test_kept_digests_follow_the_files(bert_clip_path, tmp_path):
    folder = shutil.copytree(bert_clip_path, tmp_path / "model")
    weights = folder / "model.safetensors"
    first, second = (load_identified(str(folder))[2] for _ in range(2))
    status = os.stat(weights)
    with open(weights, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time of modification
    assert first == second != load_identified(str(folder))[2]


def test_kept_digests_are_not_those_of_weights_that_came_while_they_were_loaded(bert_clip_path, tmp_path, monkeypatch):
    folder = shutil.copytree(bert_clip_path, tmp_path / "model")
    before = load_identified(str(folder))[2]

    def replace_and_load(path):  # as `from_pretrained` of a Hub name does when the Hub has a newer revision
        negate_a_weight(folder)
        return load_checkpoint(path)

    monkeypatch.setattr("component.checkpoint.load_checkpoint", replace_and_load)
    found = load_identified(str(folder))[2]
    assert found == identity_of(*load_checkpoint(str(folder))) != before


def test_weights_are_hashed_once_for_a_folder(bert_clip_path, tmp_path, monkeypatch):
    folder = str(shutil.copytree(bert_clip_path, tmp_path / "model"))
    first = load_identified(folder)[2]
    monkeypatch.setattr("component.hub.identity.half_digests", None)
    assert load_identified(folder)[2] == first
