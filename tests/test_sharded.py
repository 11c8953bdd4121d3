"""Two processes that shard the model with FSDP or DeepSpeed train like one process with the whole batch."""

from importlib.util import find_spec

import pytest
import torch
from conftest import CAPTIONS, ROOT, run_python, write_pairs
from test_train import read

from component.checkpoint import load_checkpoint
from component.processor import save_processor

DEEPSPEED = read(ROOT, "train_args", "deepspeed_zero2.json")
IN_FP32 = {key: value for key, value in DEEPSPEED.items() if key != "torch_autocast"}  # to compare


@pytest.fixture
def model(bert_clip_path, tmp_path):
    """A BertCLIP folder without dropout, which draws differently in each process, and with too high a logit_scale."""

    def build(loss_type: str) -> str:
        model, processor = load_checkpoint(bert_clip_path)
        model.config.text_config.hidden_dropout_prob = model.config.text_config.attention_probs_dropout_prob = 0.0
        model.set_loss(loss_type)
        with torch.no_grad():
            model.logit_scale.fill_(4.7)
        path = str(tmp_path / "model")
        model.save_pretrained(path)
        save_processor(processor, path)
        return path

    return build


@pytest.fixture
def train(train_args, data, model, tmp_path):
    """Run four steps of train_clip.py; returns the losses and the weights of checkpoint-final."""
    # The second batch has only one good image, so that one of two processes has none.
    rows = [f"{caption},{'none' if row in (4, 5, 7) else row}.png" for row, caption in enumerate(CAPTIONS)]

    def run_with(processes: int, output: str, loss_type: str, cache: str, **keys) -> tuple[list[float], dict]:
        args_file = train_args(
            output_dir=str(tmp_path / output),
            clip_pretrain_path=model(loss_type),
            load_from_bert_clip=True,
            loss_type=loss_type,
            image_feature_cache=cache,
            train_file=write_pairs(data, *rows),
            train_sampling_strategy="sequential",
            per_device_train_batch_size=4 // processes,
            max_steps=4,
            save_steps=2,
            learning_rate=0.1,
            learning_rates={"visual_projection": 0.2},
            layer_decay=0.9,
            optim="sgd",
            optim_args="momentum=0.9",
            weight_decay=0.1,
            ddp_backend="gloo" if processes > 1 else None,
            **keys,
        )
        result = run_python("train_clip.py", "--train_args_file", args_file, processes=processes)
        assert result.returncode == 0, result.stderr
        history = read(tmp_path, output, "trainer_state.json")["log_history"]
        trained, _ = load_checkpoint(str(tmp_path / output / "checkpoint-final"))
        return [entry["loss"] for entry in history if "loss" in entry], trained.state_dict()

    return run_with


@pytest.mark.parametrize(
    ("loss_type", "cache", "keys"),
    [
        ("siglip", "auto", {"fsdp": True}),
        pytest.param(
            "clip",
            "off",
            {"contrastive_chunk_size": 1, "deepspeed": IN_FP32},
            marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
        ),
    ],
    ids=["fsdp", "deepspeed"],
)
def test_sharded_training_equals_one_process(train, tmp_path, loss_type, cache, keys):
    """Gradients of unequal local batches, clipping, weight decay, the clamp of logit_scale, saving and resuming."""
    losses, weights = train(1, "whole", loss_type, cache)
    assert weights["logit_scale"].shape == () and weights["logit_scale"] < 4.61

    for start in (None, str(tmp_path / "sharded" / "checkpoint-2")):
        losses_of_sharded, sharded = train(2, "sharded", loss_type, cache, **keys, resume_from_checkpoint=start)
        assert losses_of_sharded == pytest.approx(losses, abs=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(
                sharded[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )
