"""train_clip.py takes the steps of a plain PyTorch loop: loss, gradient norm, learning rate and trained weights."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import CAPTIONS, run_python, write_csv
from PIL import Image
from torch import nn

from component.checkpoint import load_checkpoint
from component.training.lora import merged_state_dict

STEPS, WARMUP, RATE, DECAY = 20, 4, 2e-3, 0.1
RECIPE = dict(
    max_steps=STEPS,
    warmup_steps=WARMUP,
    learning_rate=RATE,
    weight_decay=DECAY,
    max_grad_norm=1.0,
    optim="adamw_torch",
    lr_scheduler_type="linear",
    train_sampling_strategy="sequential",
    logging_steps=1,
    image_feature_cache="off",
)


@pytest.fixture
def start(bert_clip_path, tmp_path) -> str:
    """A BertCLIP folder without dropout, which would draw different numbers."""
    path = tmp_path / "start"
    shutil.copytree(bert_clip_path, path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"].update(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


class PlainLoop:
    """`STEPS` steps of AdamW on the model of a folder, with the image tower locked."""

    def __init__(self, path: str, images, is_siglip: bool = False):
        self.model, self.processor = load_checkpoint(path)
        self.model.set_loss("siglip" if is_siglip else "clip")
        self.model.vision_model.requires_grad_(False)
        self.images, self.is_siglip = images, is_siglip

    def run(self, steps: list[list[list[int]]], rate_of=lambda name: RATE) -> list[dict[str, float]]:
        """Repeat these steps, each a list of batches whose gradients are averaged, each batch a list of rows."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(
            [
                {"params": [weight], "lr": rate_of(name), "weight_decay": DECAY if weight.ndim > 1 else 0}
                for name, weight in trained.items()
            ]
        )
        start_rates = [group["lr"] for group in optimizer.param_groups]
        history = []
        for step in range(STEPS):
            share = step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)
            for group, rate in zip(optimizer.param_groups, start_rates, strict=True):
                group["lr"] = rate * share
            batches = steps[step % len(steps)]
            loss = sum(self.loss(rows) for rows in batches) / len(batches)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(100))
            history.append({"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": RATE * share})
        return history

    def loss(self, rows: list[int]) -> torch.Tensor:
        images = [Image.open(self.images / f"{row}.png") for row in rows]
        inputs = self.processor(text=[CAPTIONS[row] for row in rows], images=images, return_tensors="pt", padding=True)
        outputs = self.model(**inputs)
        logits = self.model.logit_scale.exp() * outputs.image_embeds @ outputs.text_embeds.T
        if self.is_siglip:
            signs = 2 * torch.eye(len(rows)) - 1
            return -F.logsigmoid(signs * (logits + self.model.logit_bias)).sum() / len(rows)
        pairs = torch.arange(len(rows))
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def require_same(log_history, weights, history, expected) -> None:
    logs = [entry for entry in log_history if "loss" in entry]
    assert len(logs) == STEPS
    for log, plain in zip(logs, history, strict=True):
        assert {key: log[key] for key in plain} == pytest.approx(plain, rel=1e-4, abs=1e-5), log["step"]
    for name, value in expected.items():
        # The bias of the keys shifts all scores of a query equally: its gradient is 0 but for rounding, which AdamW
        # scales up to whole steps.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                weights[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("is_siglip", [False, True], ids=["clip", "siglip"])
def test_accumulation_with_an_uneven_last_group(trainer, data, start, is_siglip):
    plain = PlainLoop(start, data / "images", is_siglip)
    history = plain.run([[[0, 1, 2], [3, 4, 5]], [[6, 7]]])

    keys = dict(clip_pretrain_path=start, loss_type="siglip" if is_siglip else "clip")
    built = trainer(**RECIPE, **keys, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    built.train()
    require_same(built.state.log_history, built.model.state_dict(), history, plain.model.state_dict())


def test_two_processes_one_of_them_without_a_pair(train_args, data, start, tmp_path):
    plain = PlainLoop(start, data / "images")
    history = plain.run([[[0, 1, 2]], [[6, 7]]])

    rows = [(caption, f"{row}.png" if row not in (3, 4, 5) else "none.png") for row, caption in enumerate(CAPTIONS)]
    keys = dict(clip_pretrain_path=start, load_from_bert_clip=True, report_to="none", save_strategy="no")
    keys.update(train_file=str(write_csv(data / "t.csv", rows, ("text", "filename"))), ddp_backend="gloo")
    args_file = train_args(**RECIPE, **keys, per_device_train_batch_size=3)
    result = run_python("train_clip.py", "--train_args_file", args_file, processes=2)
    assert result.returncode == 0, result.stderr
    log_history = json.loads((tmp_path / "output" / "trainer_state.json").read_text())["log_history"]
    trained, _ = load_checkpoint(str(tmp_path / "output" / "checkpoint-final"))
    require_same(log_history, trained.state_dict(), history, plain.model.state_dict())


class PlainLora(nn.Module):
    """x → W x + b + 2 B A x."""

    def __init__(self, linear: nn.Linear, a: torch.Tensor):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Parameter(a.clone()), nn.Parameter(torch.zeros(len(linear.weight), len(a)))

    def forward(self, x):
        return self.linear(x) + 2 * x @ self.lora_A.T @ self.lora_B.T


def test_lora_with_layer_decay(trainer, data, start):
    targets = ("query", "value")
    keys = dict(clip_pretrain_path=start, lora_rank=2, lora_targets=targets, layer_decay=0.5)
    built = trainer(**RECIPE, **keys, per_device_train_batch_size=4)

    plain = PlainLoop(start, data / "images")
    plain.model.text_model.requires_grad_(False)
    layers = {}
    for number in range(2):
        attention = plain.model.text_model.encoder.layer[number].attention.self
        peft = built.model.text_model.encoder.layer[number].attention.self
        for target in targets:
            layer = PlainLora(getattr(attention, target), getattr(peft, target).lora_A["default"].weight.detach())
            layers[f"text_model.encoder.layer.{number}.attention.self.{target}.weight"] = layer
            setattr(attention, target, layer)

    def rate_of(name: str) -> float:
        return RATE * (0.5 if "layer.1." in name else 0.25 if "layer.0." in name else 1)

    history = plain.run([[[0, 1, 2, 3]], [[4, 5, 6, 7]]], rate_of)
    expected = {name: value for name, value in plain.model.state_dict().items() if "layer." not in name}
    for name, layer in layers.items():
        expected[name] = layer.linear.weight + 2 * layer.lora_B @ layer.lora_A

    built.train()
    require_same(built.state.log_history, merged_state_dict(built.model), history, expected)
