"""Learning from a teacher: what the loss is, what is computed once, what is saved, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CAPTIONS, build_trainer, run_python
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from component.argument import load_arguments
from component.checkpoint import load_checkpoint, save_checkpoint
from component.configuration import BertCLIPConfig
from component.embedding import embed_images, embed_texts
from component.loss import contrastive_loss
from component.model import BertCLIPModel
from component.processor import load_processor

TO_TEACHER = "to_teacher.safetensors"


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory, clip_path, bert_path) -> str:
    """A BertCLIP whose embeddings have 24 numbers, not 16, and whose tokenizer has its characters in another order."""
    path, bert = (str(tmp_path_factory.mktemp(name)) for name in ("teacher", "teacher_bert"))
    shutil.copytree(bert_path, bert, dirs_exist_ok=True)
    with open(os.path.join(bert, "vocab.txt"), "r+", encoding="utf-8") as file:
        tokens = file.read().split()
        file.seek(0)
        file.writelines(f"{token}\n" for token in [*tokens[:5], *tokens[:4:-1]])
    vision = BertCLIPConfig.from_pretrained(clip_path).vision_config
    torch.manual_seed(4)
    model = BertCLIPModel(
        BertCLIPConfig(text_config=BertConfig.from_pretrained(bert_path), vision_config=vision, projection_dim=24)
    )
    save_checkpoint(model, load_processor(clip_path, bert, max_length=24), path)
    return path


@pytest.fixture
def keys(bert_clip_path, teacher_path) -> dict:
    start = {"clip_pretrain_path": bert_clip_path, "load_from_bert_clip": True, "report_to": "none"}
    return {**start, "distill_from": teacher_path, "distill_weight": 3.0}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(folder, "model.safetensors"))


def losses(output, key="loss") -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"freeze_vision": False, "loss_type": "siglip", "contrastive_chunk_size": 3},
        {"freeze_visual_projection": True, "text_noise": 1.0, "text_feature_cache": "off"},
        {"freeze_text": True},
        {"image_vectors": "images.npy", "image_vector_ids": "order"},
    ],
    ids=lambda more: next(iter(more), "plain"),
)
def test_the_loss_adds_the_squared_distance_to_the_teachers_embeddings(
    train_args, data, keys, teacher_path, bert_clip_path, more, monkeypatch
):
    files = [str(data / "images" / f"{row}.png") for row in range(len(CAPTIONS))]
    monkeypatch.chdir(data)
    np.save("images.npy", embed_images(*load_checkpoint(bert_clip_path), files, num_workers=0).embeds.numpy())
    trainer = build_trainer(load_arguments(train_args(**keys, **more)))
    model, batch = trainer.model.train(), next(iter(trainer.get_train_dataloader()))
    for module in model.modules():  # no dropout
        module.training = False
    model.training = True
    loss, outputs = trainer.compute_loss(model, trainer._prepare_inputs(batch), return_outputs=True)
    teacher, rows = load_checkpoint(teacher_path), batch["rows"].tolist()
    texts = embed_texts(*teacher, [CAPTIONS[row] for row in rows]).embeds
    images = embed_images(*teacher, [files[row] for row in rows]).embeds
    sides = [(outputs.text_embeds, texts)]
    if trainer.args.trains_image_embeds:
        sides.append((outputs.image_embeds, images))
    expected = contrastive_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale, outputs.logit_bias)
    for own, taught in sides:
        mapped = F.normalize(own @ model.to_teacher.weight.T, dim=-1)
        expected = expected + 3 * (mapped - taught).square().sum(dim=1).mean()
    torch.testing.assert_close(loss, expected, atol=5e-3, rtol=1e-3)  # the teacher's are kept in half precision
    loss.backward()
    assert model.to_teacher.weight.grad.abs().sum() > 0


def test_a_small_text_tower_learns_the_space_of_its_teacher_whose_gallery_stays(
    train_here, bert_clip_path, bert_path, tmp_path
):
    bert = tmp_path / "bert"
    BertModel.from_pretrained(bert_path, num_hidden_layers=1).save_pretrained(bert)
    shutil.copy(os.path.join(bert_path, "vocab.txt"), bert)
    keys = {"clip_pretrain_path": bert_clip_path, "bert_pretrain_path": str(bert), "distill_from": bert_clip_path}
    keys |= {"freeze_visual_projection": True, "save_strategy": "no", "per_device_train_batch_size": 8}
    train_here(**keys, num_train_epochs=40, logging_steps=5)
    distances = losses(tmp_path / "output", "distill_loss")
    assert distances[-1] < distances[0] / 2
    before, after = weights(bert_clip_path), weights(tmp_path / "output" / "checkpoint-final")
    kept = [name for name in before if name.startswith(("vision", "visual"))]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert after.keys() < before.keys()  # nothing of the training


@pytest.mark.parametrize("more", [{"freeze_vision": False}, {"lora_rank": 2, "contrastive_chunk_size": 2}])
def test_a_resumed_run_equals_an_uninterrupted_one(train_here, keys, tmp_path, more):
    keys = {**keys, **more, "num_train_epochs": 4, "save_steps": 4}
    train_here(**keys)
    output, whole = tmp_path / "output", tmp_path / "whole"
    shutil.copytree(output, whole)
    assert (output / "checkpoint-4" / TO_TEACHER).exists()
    for name in ("checkpoint-4", "checkpoint-final"):
        assert "to_teacher.weight" not in weights(output / name)
        if "lora_rank" in more:
            assert not any(
                "to_teacher" in key for key in load_file(output / name / "adapter/adapter_model.safetensors")
            )
    assert not (output / "checkpoint-final" / TO_TEACHER).exists()
    shutil.rmtree(output / "checkpoint-8")
    train_here(**keys, resume_from_checkpoint="auto")
    assert losses(output) == losses(whole) and losses(output, "distill_loss") == losses(whole, "distill_loss")
    after, expected = weights(output / "checkpoint-final"), weights(whole / "checkpoint-final")
    assert all(torch.equal(value, expected[name]) for name, value in after.items())


def test_another_teacher_is_another_run(train_here, keys, teacher_path, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_path, teacher)
    keys["distill_from"] = str(teacher)
    train_here(**keys, save_steps=2)
    save_file(
        {name: value + 1 for name, value in weights(teacher).items()}, teacher / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="learnt from another teacher than distill_from holds now: the weights of"):
        train_here(**keys, save_steps=2, resume_from_checkpoint="auto")


def test_two_processes_train_as_one_and_a_bad_image_is_left_out(
    train_here, train_args, keys, bert_clip_path, data, tmp_path
):
    start = tmp_path / "start"
    shutil.copytree(bert_clip_path, start)
    config = json.loads((start / "config.json").read_text())
    config["text_config"].update(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    (start / "config.json").write_text(json.dumps(config))
    (data / "images" / "6.png").write_bytes(b"no image")
    keys |= {"freeze_vision": False, "freeze_text": True, "save_strategy": "no", "clip_pretrain_path": str(start)}
    train_here(**keys, output_dir=str(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "train_results.json").read_text())["train_bad_images"] == 1
    for name in ("teacher_embeddings", "text_features"):
        shutil.rmtree(tmp_path / name)
    args_file = train_args(**keys | {"per_device_train_batch_size": 2})
    result = run_python("train_clip.py", "--train_args_file", args_file, processes=2)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "output") == pytest.approx(losses(tmp_path / "one"), abs=2e-2)
    for name, blocks in (("teacher_embeddings", 4), ("text_features", 2)):  # a block of each process
        assert len(list((tmp_path / name).rglob("*.safetensors"))) == blocks


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"distill_weight": 0}, "`distill_weight` is 0.0; expected a number above 0"),
        ({"distill_from": None}, "`distill_weight` is given, but without `distill_from` there is no teacher"),
        ({"distill_from": "nowhere/at/all"}, "`distill_from`: .*nowhere/at/all is not a model folder"),
        ({"fsdp": True}, "`distill_from` does not work with `fsdp`"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(train_args, keys, more, message):
    with pytest.raises(ValueError, match=message):
        load_arguments(train_args(**keys | more))


def test_a_teacher_that_does_not_fit_is_refused(train_here, keys, bert_clip_path, bert_path, chinese_clip_path):
    with pytest.raises(ValueError, match="`distill_from`: .* is not a BertCLIP checkpoint: its model_type is bert"):
        train_here(**keys | {"distill_from": bert_path})
    locked = {"distill_from": chinese_clip_path, "freeze_visual_projection": True}
    with pytest.raises(ValueError, match="the image half is locked, but it is not that of .*chinese_clip"):
        train_here(**keys | locked)
