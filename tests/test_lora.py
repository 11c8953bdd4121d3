"""LoRA on the text tower: what is trained, what is saved, and how it resumes."""

import json
import os
import shutil
import sys

import pytest
import torch
from conftest import run_python
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from component.argument import load_arguments
from component.checkpoint import load_checkpoint
from component.model import BertCLIPModel
from component.training.lora import add_lora, merged_state_dict

LORA = {"lora_rank": 2, "lora_dropout": 0.1}
LOCKED = ("LayerNorm", "embeddings", "pooler", "bias", "vision_model")


@pytest.fixture
def run(train_here, bert_clip_path):
    """`train_here` with LoRA, from `bert_clip_path`."""
    start = dict(clip_pretrain_path=bert_clip_path, bert_pretrain_path=None, load_from_bert_clip=True)
    return lambda **keys: train_here(**{**start, **LORA, **keys})


def weights(*parts) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(*map(str, parts), "model.safetensors"))


def losses(output) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "keys", [{}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}]
)
def test_saved_weights_are_merged_and_locked_weights_unchanged(run, tmp_path, bert_clip_path, keys):
    run(save_steps=2, **keys)
    before, final = weights(bert_clip_path), weights(tmp_path, "output", "checkpoint-final")
    assert before.keys() == final.keys() == weights(tmp_path, "output", "checkpoint-2").keys()
    moved = {name for name, value in before.items() if not torch.equal(value, final[name])}
    assert {"logit_scale", "text_projection.weight", "visual_projection.weight"} < moved
    assert "text_model.encoder.layer.0.attention.self.query.weight" in moved
    assert not [name for name in moved if any(part in name for part in LOCKED)]


def test_merged_and_unmerged_give_the_same_embeddings(bert_clip_path):
    unmerged, merged = (BertCLIPModel.from_pretrained(bert_clip_path).eval() for _ in range(2))
    add_lora(unmerged, rank=4, alpha=3, dropout=0.5, targets=None)
    for name, parameter in unmerged.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    merged.load_state_dict(merged_state_dict(unmerged.eval()))
    tokens = {"input_ids": torch.randint(5, 20, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    features = [model.get_text_features(**tokens) for model in (unmerged, merged)]
    assert torch.allclose(*features, atol=1e-5)
    assert not torch.allclose(features[0], BertCLIPModel.from_pretrained(bert_clip_path).get_text_features(**tokens))


@pytest.mark.parametrize(("base", "freeze_vision"), [(BertCLIPModel, True), (AutoModel, "last_n_blocks:1")])
def test_peft_merges_base_and_adapter_into_the_saved_model(run, tmp_path, bert_clip_path, base, freeze_vision):
    run(save_steps=2, freeze_vision=freeze_vision)
    for name in ("checkpoint-2", "checkpoint-final"):
        folder = tmp_path / "output" / name
        start = base.from_pretrained(bert_clip_path, trust_remote_code=True)
        model = PeftModel.from_pretrained(start, folder / "adapter").merge_and_unload()
        with pytest.raises(ValueError, match="no config.json. It is a LoRA adapter; .* in the folder above"):
            load_checkpoint(str(folder / "adapter"))
        merged, expected = model.state_dict(), weights(folder)
        assert merged.keys() == expected.keys()
        assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in merged.items())


@pytest.mark.parametrize(
    "keys",
    [
        {"contrastive_chunk_size": 2, "matryoshka_dims": [4]},
        {"freeze_vision": False, "gradient_checkpointing": True},
        {"image_feature_cache": "off", "gradient_accumulation_steps": 2},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path, keys):
    keys = {"num_train_epochs": 4, "per_device_train_batch_size": 2, "save_steps": 4, **keys}
    run(**keys)
    output, whole = tmp_path / "output", tmp_path / "whole"
    shutil.copytree(output, whole)
    for folder in output.glob("checkpoint-*"):
        if folder.name != "checkpoint-4":
            shutil.rmtree(folder)
    run(**keys, resume_from_checkpoint="auto")
    assert losses(output) == losses(whole)
    expected = weights(whole, "checkpoint-final")
    for name, value in weights(output, "checkpoint-final").items():
        assert torch.equal(value, expected[name]), name


def test_the_best_weights_are_loaded_at_the_end(run, data, tmp_path):
    test = dict(test_file=str(data / "train.csv"), eval_strategy="steps", eval_steps=1, save_steps=1)
    run(**test, load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, max_steps=3)
    final = weights(tmp_path, "output", "checkpoint-final")
    best = weights(tmp_path, "output", "checkpoint-1")  # by the highest loss
    assert all(torch.equal(value, best[name]) for name, value in final.items())


def test_two_processes_train_as_one(run, train_args, bert_clip_path, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(bert_clip_path, start)
    config = json.loads((start / "config.json").read_text())
    config["text_config"].update(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    (start / "config.json").write_text(json.dumps(config))
    keys = {"clip_pretrain_path": str(start), "load_from_bert_clip": True, "report_to": "none", "lora_rank": 2}
    keys.update(text_templates=["一只{}", "{}在摇尾巴"], text_noise=0.5)
    run(**keys, lora_dropout=0, output_dir=str(tmp_path / "one"))
    args_file = train_args(**keys, per_device_train_batch_size=2)
    result = run_python("train_clip.py", "--train_args_file", args_file, processes=2)
    assert result.returncode == 0, result.stderr
    one = weights(tmp_path, "one", "checkpoint-final")
    for name, value in weights(tmp_path, "output", "checkpoint-final").items():
        assert torch.allclose(value, one[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("is_old", "message"),
    [
        (False, "started from another model than .*: the weights of the text half"),
        (True, "layer.1.output.dense.bias differs.: restore the original ones"),
    ],
    ids=["today", "a checkpoint that does not know its start"],
)
def test_a_run_does_not_resume_from_changed_start_weights(run, tmp_path, bert_clip_path, is_old, message):
    start = tmp_path / "start" / "base"
    shutil.copytree(bert_clip_path, start)
    run(clip_pretrain_path=str(start), save_steps=2)
    changed = weights(start)
    changed["text_model.encoder.layer.1.output.dense.bias"] += 1e-3
    save_file(changed, start / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "output" / "checkpoint-4")
    if is_old:
        record = tmp_path / "output" / "checkpoint-2" / "resume.json"
        content = json.loads(record.read_text())
        content["run"].pop("start")
        record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run(clip_pretrain_path=str(start), save_steps=2, resume_from_checkpoint="auto")


@pytest.mark.parametrize("known", [("lora_rank",), ()])
def test_a_run_without_lora_does_not_resume_with_it(run, tmp_path, known):
    run(lora_rank=None, lora_dropout=0, save_steps=2)
    record = tmp_path / "output" / "checkpoint-4" / "resume.json"
    content = json.loads(record.read_text())
    recipe = content["run"]["recipe"]
    content["run"]["recipe"] = {key: recipe[key] for key in recipe if "lora" not in key or key in known}
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another recipe: lora_rank was null, is 2"):
        run(lora_dropout=0, resume_from_checkpoint="auto")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["query", "q_proj"], "no linear layer q_proj; it has attention.self.query, .*pooler.dense"),
        ("uery", "no linear layer uery"),
        (["LayerNorm"], "no linear layer LayerNorm"),
        (["attention"], "no linear layer attention;"),
        (["visual_projection"], "no linear layer visual_projection"),
        (["que.*"], r"no linear layer que\.\*"),
    ],
)
def test_an_unknown_target_is_reported_before_the_data_is_read(run, targets, message):
    with pytest.raises(ValueError, match=f"^`lora_targets`: the text tower has {message}") as error:
        run(lora_targets=targets)
    assert "\n" not in str(error.value)


def test_a_rank_above_the_width_of_a_layer_is_refused(run):
    with pytest.raises(ValueError, match="`lora_rank` is 33, but query has only 32 dimensions"):
        run(lora_rank=33)


def test_targets_choose_the_layers(run, tmp_path, bert_clip_path):
    run(lora_targets=["text_model.encoder.layer.1.attention.self.query", "pooler.dense"], max_steps=1)
    before, final = weights(bert_clip_path), weights(tmp_path, "output", "checkpoint-final")
    moved = {name for name, value in before.items() if not torch.equal(value, final[name])}
    towers = {name for name in moved if name.startswith("text_model.")}
    assert towers == {"text_model.encoder.layer.1.attention.self.query.weight", "text_model.pooler.dense.weight"}


def test_missing_peft_is_reported(train_args, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="`lora_rank` needs peft: pip install peft, or .*requirements-extras.txt"):
        load_arguments(train_args(**LORA))
