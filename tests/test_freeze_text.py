"""A locked text tower: what is trained, what is cached, how it resumes, what is refused."""

import json
import os
import shutil

import pytest
import torch
from conftest import CAPTIONS
from safetensors.torch import load_file, save_file

from component.argument import load_arguments

LEARNT = {"logit_scale", "text_projection.weight", "visual_projection.weight"}


@pytest.fixture
def keys(bert_clip_path) -> dict:
    return {"clip_pretrain_path": bert_clip_path, "load_from_bert_clip": True, "freeze_text": True}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(folder, "model.safetensors"))


def losses(output) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("more", [{}, {"loss_type": "siglip", "contrastive_chunk_size": 3}, {"text_noise": 0.5}])
def test_only_the_projections_are_trained_and_the_cache_changes_nothing(
    train_here, keys, data, tmp_path, bert_clip_path, more
):
    keys = {**keys, **more, "save_strategy": "no", "test_file": str(data / "train.csv"), "num_train_epochs": 3}
    train_here(**keys)
    before, after = weights(bert_clip_path), weights(tmp_path / "output" / "checkpoint-final")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == LEARNT
    train_here(**keys, output_dir=str(tmp_path / "plain"), text_feature_cache="off", image_feature_cache="off")
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "output"), abs=1e-2)
    assert (tmp_path / "text_features").exists() == ("text_noise" not in more)


def test_each_text_goes_through_the_tower_once(train_here, keys, data, tmp_path, caplog):
    with open(data / "train.csv", "a", encoding="utf-8") as file:
        file.write(f"{CAPTIONS[2]},,0.png\n另一句话,,0.png\n")
    train_here(**keys, save_strategy="no")
    assert "text features of 9 texts" in caplog.text
    caplog.clear()
    train_here(**keys, save_strategy="no", output_dir=str(tmp_path / "again"), per_device_eval_batch_size=2)
    assert "text features of" not in caplog.text and losses(tmp_path / "again") == losses(tmp_path / "output")
    train_here(**keys, save_strategy="no", output_dir=str(tmp_path / "short"), max_seq_length=5)
    assert "text features of 9 texts" in caplog.text  # cut elsewhere: other features


def test_a_resumed_run_equals_an_uninterrupted_one(train_here, keys, tmp_path):
    keys = {**keys, "num_train_epochs": 4, "save_steps": 4}
    train_here(**keys)
    output, whole = tmp_path / "output", tmp_path / "whole"
    shutil.copytree(output, whole)
    shutil.rmtree(output / "checkpoint-8")
    shutil.rmtree(tmp_path / "text_features")  # may be deleted at any time
    train_here(**keys, resume_from_checkpoint="auto")
    assert losses(output) == losses(whole)
    after, expected = weights(output / "checkpoint-final"), weights(whole / "checkpoint-final")
    assert all(torch.equal(value, expected[name]) for name, value in after.items())


def test_a_batch_without_a_good_image_teaches_nothing(train_here, keys, data, tmp_path):
    for number in (0, 1):
        (data / "images" / f"{number}.png").write_bytes(b"no image")
    batches = {"per_device_train_batch_size": 2, "train_sampling_strategy": "sequential"}
    train_here(**keys, **batches, freeze_vision=False, save_strategy="no")
    assert json.loads((tmp_path / "output" / "train_results.json").read_text())["train_bad_images"] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora_rank": 2}, "`lora_rank` trains the text tower, and `freeze_text` locks it"),
        ({"layer_decay": 0.9}, "`layer_decay` has no effect, because both towers are locked"),
        (
            {"text_noise": 0.1, "text_feature_cache": "somewhere"},
            "can be kept only if they are the same in every step",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_loaded(train_args, keys, more, message):
    with pytest.raises(ValueError, match=message):
        load_arguments(train_args(**keys, **more))


def test_a_rate_for_the_locked_tower_and_a_missing_pooler_are_refused(
    train_here, keys, bert_path, clip_path, tmp_path
):
    with pytest.raises(ValueError, match="all weights that begin with text_model are locked"):
        train_here(**keys, learning_rates={"text_model": 1e-3})
    bert = tmp_path / "bert"
    shutil.copytree(bert_path, bert)
    kept = {name: value for name, value in weights(bert).items() if "pooler" not in name}
    save_file(kept, bert / "model.safetensors", metadata={"format": "pt"})
    pair = {"clip_pretrain_path": clip_path, "load_from_bert_clip": False, "bert_pretrain_path": str(bert)}
    with pytest.raises(ValueError, match="is not a BERT that can be locked .* or set text_pooling to cls"):
        train_here(**keys | pair)
    assert train_here(**keys | pair, text_pooling="cls") is None
