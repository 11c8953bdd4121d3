"""train_clip.py from its command line, on small towers and real files."""

import ast
import csv
import inspect
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import textwrap

import huggingface_hub
import pytest
import torch
from conftest import CAPTIONS, ROOT, run_python, write_pairs
from huggingface_hub import ModelCard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertTokenizerFast,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from component.argument import load_arguments
from component.checkpoint import load_checkpoint, save_checkpoint
from component.dataset import Pairs
from component.image.transform import ImageTransform
from component.model import BertCLIPModel, BertCLIPTextModel
from component.pairs.image_source import DecodedImages
from component.processor import load_processor
from component.shorten import shorten
from component.trainer import CLIPTrainer
from component.training.build import load_model
from component.training.data import load_datasets
from component.training.early_stopping import StopEarly
from component.training.interruption import RunFailed
from component.training.preflight import preflight
from component.training.resumable_trainer import ResumableTrainer
from component.training.resume import require_whole
from component.training.sampler import SharedBatches
from component.training.saving_trainer import SavingTrainer


def train(args_file: str, *options: str) -> subprocess.CompletedProcess:
    result = run_python("train_clip.py", "--train_args_file", args_file, *options)
    assert result.returncode == 0, result.stderr
    return result


def read(*parts) -> dict:
    with open(os.path.join(*map(str, parts)), encoding="utf-8") as file:
        return json.load(file)


def test_every_class_loads_what_a_run_saves(train_args, data, clip_path, tmp_path):
    args_file = train_args(test_file=str(data / "train.csv"), eval_strategy="epoch", save_steps=1, save_total_limit=2)
    result = train(args_file, "--set", "max_steps=3")
    output = tmp_path / "output"

    # the files
    assert "repeated captions: 0.0%" in result.stderr
    written = set(os.listdir(output))
    assert {
        "train_args.json",
        "versions.json",
        "train_results.json",
        "test_results.json",
        "trainer_state.json",
    } <= written
    assert {name for name in written if name.startswith("checkpoint-")} == {
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-final",
    }
    assert load_arguments(str(output / "train_args.json")).max_steps == 3
    *_, model_line, predict, index, serve = re.findall(r"(?m)^\S+ (.*)$", result.stderr)
    assert f"the model is in {output}/checkpoint-final" in model_line and f"serve --gallery {output}/gallery" in serve
    for line in (predict, index):
        assert run_python(*shlex.split(line)[1:]).returncode == 0
    assert (output / "similarity.html").exists()

    # the logs
    history = read(output, "trainer_state.json")["log_history"]
    first = history[0]
    assert first["ln_batch"] == pytest.approx(math.log(4)) and first["logit_scale"] == pytest.approx(14.28, abs=0.1)
    assert first["pairs_per_second"] > 0 and "learning_rate" in first and "loss" in first
    assert any("eval_mean_recall" in entry for entry in history)

    # the numbers
    results = read(output, "test_results.json")
    assert results["eval_pairs"] == 8 and results["eval_bad_images"] == 0 and results["eval_loss"] > 0
    assert results["eval_text_to_image_recall@10"] == 1 and 0 <= results["eval_image_to_text_recall@1"] <= 1
    assert read(output, "train_results.json")["train_bad_images"] == 0

    # the weights: the image tower is CLIP's, bit for bit; the rest has moved
    final = str(output / "checkpoint-final")
    model, report = BertCLIPModel.from_pretrained(final, output_loading_info=True)
    assert not any(report.values())
    clip = CLIPModel.from_pretrained(clip_path)
    for key, value in clip.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[key], value)
    assert not torch.equal(model.visual_projection.weight, clip.visual_projection.weight)
    assert model.logit_scale != clip.logit_scale
    optimizer = torch.load(output / "checkpoint-3" / "optimizer.pt", weights_only=True)
    trainable = sum(not name.startswith("vision_model.") for name, _ in model.named_parameters())
    assert len(optimizer["state"]) == trainable

    # the classes of the published examples
    processor = CLIPProcessor.from_pretrained(final)
    inputs = processor(text=CAPTIONS, return_tensors="pt", padding=True)
    tokenizer = BertTokenizerFast.from_pretrained(final)
    assert tokenizer(CAPTIONS[0])["input_ids"] == inputs["input_ids"][0].tolist()
    assert BertCLIPTextModel.from_pretrained(final)(**inputs).pooler_output.shape == (8, 32)
    assert CLIPVisionModel.from_pretrained(final).config.hidden_size == 48
    saved = read(final, "tokenizer.json")
    assert saved["truncation"] is None and saved["padding"] is None

    # the modeling code for users without this repository, and the model card
    for name in ("checkpoint-2", "checkpoint-3", "checkpoint-final"):
        assert read(output, name, "config.json")["auto_map"] and (output / name / "modeling_bertclip.py").exists()
    card = ModelCard.load(os.path.join(final, "README.md"))
    assert card.data.library_name == "transformers" and card.data.license is None
    assert card.data.pipeline_tag == "zero-shot-image-classification" and card.data.base_model is None
    recalls = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert {f"eval_{key}": value for key, value in recalls.items()}.items() <= results.items() and len(recalls) == 7
    assert "trust_remote_code=True" in card.text[:100] and "train.csv, 8 pairs" in card.text
    assert str(tmp_path) not in card.content


def test_starting_from_a_final_model(train_args, tmp_path):
    train(train_args(max_steps=2))
    final = str(tmp_path / "output" / "checkpoint-final")
    again = train_args(
        clip_pretrain_path=final, bert_pretrain_path=None, load_from_bert_clip=True, output_dir=str(tmp_path / "b")
    )
    train(again, "--set", "learning_rate=0", "--set", "max_steps=1")
    before, after = (
        BertCLIPModel.from_pretrained(path).state_dict() for path in (final, tmp_path / "b/checkpoint-final")
    )
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_bad_images_are_logged_once_and_counted(train_args, data, tmp_path, cache):
    (data / "images" / "2.png").write_bytes(b"<html>")
    rows = [f"{caption},{n}.png" for n, caption in enumerate(CAPTIONS)] + ["小狗,none.png", ",0.png"]
    file = write_pairs(data, *rows)
    keys = dict(num_train_epochs=3, dataloader_num_workers=2, image_feature_cache=cache, eval_strategy="epoch")
    result = train(train_args(train_file=file, test_file=file, **keys))
    assert result.stderr.count("left out of") == 2
    assert result.stderr.count("none.png: no such file") == 1
    assert "empty captions (left out): 1" in result.stderr
    assert read(tmp_path, "output", "train_results.json")["train_bad_images"] == 2
    assert read(tmp_path, "output", "test_results.json")["eval_bad_images"] == 2
    assert read(tmp_path, "output", "test_results.json")["eval_pairs"] == 7


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_many_dead_links_are_a_few_lines_and_a_file(train_args, data, tmp_path, cache):
    rows = [f"{caption},{n}.png" for n, caption in enumerate(CAPTIONS)] + [f"小狗,none{n}.png" for n in range(50)]
    keys = dict(num_train_epochs=2, per_device_train_batch_size=8, save_steps=8, image_feature_cache=cache)
    result = train(train_args(train_file=write_pairs(data, *rows), pair_table="off", **keys))
    assert 20 <= result.stderr.count("left out of") <= 23
    with open(tmp_path / "output" / "left_out_train.csv", encoding="utf-8", newline="") as file:
        head, *found = csv.reader(file)
    assert head == ["row", "reason"] and len(found) == 50
    assert min(found) == ["10", "none2.png: no such file"]
    assert read(tmp_path, "output", "train_results.json")["train_bad_images"] == 50
    checkpoint = next((tmp_path / "output").glob("checkpoint-*[0-9]"))
    assert len(read(checkpoint, "resume.json")["extra_state"]["bad_images"]) < 40


def test_two_processes_train_and_evaluate_like_one(train_args, data, tmp_path):
    rows = [f"{caption},{n}.png" for n, caption in enumerate(CAPTIONS[:7])] + ["小狗,none.png"]
    file = write_pairs(data, *rows)
    keys = dict(train_file=file, test_file=file, learning_rate=0, num_train_epochs=1, per_device_train_batch_size=1)
    train(train_args(**keys, output_dir=str(tmp_path / "one")))
    args_file = train_args(**keys, output_dir=str(tmp_path / "two"), ddp_backend="gloo")
    result = run_python("train_clip.py", "--train_args_file", args_file, processes=2)
    assert result.returncode == 0, result.stderr
    one, two = (read(tmp_path, name, "test_results.json") for name in ("one", "two"))
    assert two["eval_pairs"] == 7 and two["eval_bad_images"] == 1
    assert read(tmp_path, "two", "train_results.json")["train_bad_images"] == 1
    for key in one:
        if "recall" in key or "rank" in key:
            assert two[key] == one[key], key


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, "Unknown argument `learning_rat`"),
        ({"max_seq_length": 30}, "the text tower has 24 positions"),
        ({"freeze_vision": "last_n_blocks:3"}, "last 3 blocks cannot be unlocked: the vision tower has 2"),
        ({"image_path": "tests"}, "None of the 8 "),
        ({"resume_from_checkpoint": True}, "no whole checkpoint"),
    ],
)
def test_a_users_mistake_is_reported_in_one_line_without_a_traceback(train_args, keys, message):
    result = run_python("train_clip.py", "--train_args_file", train_args(**keys))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]


CANNOT_CONNECT = """
import os, sys, train_clip
from component.ground.command import run_script

os.environ.update(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
os.environ["GLOO_SOCKET_IFNAME"] = "nowhere"
sys.exit(run_script(train_clip.main))
"""


def test_processes_that_cannot_connect_are_not_blamed_on_the_arguments(train_args):
    result = run_python("-c", CANNOT_CONNECT, "--train_args_file", train_args(ddp_backend="gloo"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "the processes of this run cannot connect to each other" in result.stderr.splitlines()[-1]


def test_a_hub_that_does_not_answer_is_reported_before_training(train_args, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    args = load_arguments(train_args(push_to_hub=True, hub_token="hf_1", hub_model_id="us/clip"))
    model, processor = load_model(args)
    with pytest.raises(ValueError, match="^`push_to_hub`: the repository us/clip cannot be created .*Check network"):
        preflight(args, model, *load_datasets(args, processor))


def test_a_recipe_that_saves_very_often_is_told_what_that_costs(train_args, caplog):
    for every, is_said in ((1, True), (10**9, False)):
        args = load_arguments(train_args(num_train_epochs=10**8, save_strategy="steps", save_steps=every))
        model, processor = load_model(args)
        caplog.clear()
        with caplog.at_level("INFO"):
            preflight(args, model, *load_datasets(args, processor))
        size = sum(weights.numel() * (12 if weights.requires_grad else 4) for weights in model.parameters())
        said = [line for line in caplog.messages if line.startswith(f"save_steps {every}: ")]
        assert bool(said) == is_said and all(f"checkpoints of about {size / 1e9:.2f} GB" in line for line in said)


def test_an_empty_batch_during_accumulation_changes_nothing(trainer, data):
    keys = dict(per_device_train_batch_size=2, max_steps=1, train_sampling_strategy="sequential", max_grad_norm=1e9)
    good = [f"{CAPTIONS[0]},0.png", f"{CAPTIONS[1]},1.png"]
    bad = ["小狗,none.png", "小猪,gone.png"]

    def weights(rows, accumulation):
        # plain SGD: the step is the gradient, which accumulation divides by the number of batches
        sgd = dict(optim="sgd", learning_rate=1e-3 * accumulation, gradient_accumulation_steps=accumulation)
        built = trainer(train_file=write_pairs(data, *rows), **keys, **sgd)
        output = built.train()
        return output.metrics, dict(built.model.named_parameters())

    plain_metrics, plain = weights(good, 1)
    metrics, with_empty = weights(good + bad, 2)

    assert metrics["train_bad_images"] == 2
    assert metrics["train_loss"] == pytest.approx(plain_metrics["train_loss"])
    for name, value in with_empty.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("keys", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2, "loss_type": "siglip"}])
@pytest.mark.parametrize("freeze_vision", [True, False])
def test_chunks_train_like_the_whole_batch(trainer, data, keys, freeze_vision):
    """With dropout. 3 does not divide the batches of 7 pairs, and each epoch ends with a batch of one."""
    rows = [f"{caption},{n}.png" for n, caption in enumerate(CAPTIONS)]
    keys = dict(per_device_train_batch_size=7, num_train_epochs=4, freeze_vision=freeze_vision, **keys)

    def losses(**chunks):
        built = trainer(train_file=write_pairs(data, *rows), **keys, **chunks)
        built.train()
        return [entry["loss"] for entry in built.state.log_history if "loss" in entry], built.model.state_dict()

    plain, weights = losses(text_group_size=3)
    chunked, weights_of_chunked = losses(contrastive_chunk_size=3)
    assert len(set(plain)) > 2 and chunked == pytest.approx(plain, abs=1e-5)
    torch.testing.assert_close(weights_of_chunked["logit_scale"], weights["logit_scale"], atol=1e-6, rtol=0)


def test_the_fused_optimizer_gives_the_same_numbers(trainer):
    def losses(optim: str) -> list[float]:
        built = trainer(optim=optim, max_steps=6, weight_decay=0.1, max_grad_norm=1.0, logging_steps=1)
        built.train()
        return [entry["loss"] for entry in built.state.log_history if "loss" in entry]

    fused = losses("adamw_torch_fused")
    assert len(set(fused)) == 6 and fused == pytest.approx(losses("adamw_torch"), abs=1e-5)


class Readings(TorchDispatchMode):
    """Counts operations that read a tensor's value: on a GPU, each waits for all work launched before it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keys", [{}, {"contrastive_chunk_size": 3, "loss_type": "siglip"}, {"bf16": True}])
def test_a_step_waits_for_nothing_on_the_device(trainer, keys):
    """Between the optimizer step of the first step and the end of the second one."""
    built = trainer(max_steps=3, logging_steps=3, mask_duplicates=True, max_grad_norm=1.0, **keys)
    readings = Readings()

    class Listening(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 0:
                readings.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                readings.__exit__(None, None, None)

    built.add_callback(Listening())
    built.train()
    assert readings.count == 0


def test_masked_duplicates_are_not_negatives(trainer, data):
    """The same pair eight times: without negatives the loss is 0."""
    keys = dict(learning_rate=0, max_steps=1, per_device_train_batch_size=8)
    losses = []
    for mask in (False, True):
        built = trainer(train_file=write_pairs(data, *[f"{CAPTIONS[0]},0.png"] * 8), mask_duplicates=mask, **keys)
        losses.append(built.train().training_loss)
    assert losses[0] > 1 and losses[1] == pytest.approx(0, abs=1e-5)


def test_a_step_with_only_bad_images_changes_no_weight(trainer, data):
    rows = ["小狗,none.png", "小猪,gone.png", f"{CAPTIONS[0]},0.png"]
    built = trainer(
        train_file=write_pairs(data, *rows),
        per_device_train_batch_size=2,
        max_steps=1,
        train_sampling_strategy="sequential",
    )
    before = {name: value.clone() for name, value in built.model.named_parameters()}
    built.train()
    assert all(torch.equal(value, before[name]) for name, value in built.model.named_parameters())


def test_towers_run_in_half_precision_and_the_loss_does_not(trainer, monkeypatch):
    built = trainer(bf16=True, max_steps=2)
    dtypes, compute_loss = [], built.compute_loss

    def recorded(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        dtypes.append(loss.dtype)
        return loss

    monkeypatch.setattr(built, "compute_loss", recorded)
    built.model.text_projection.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    built.train()
    assert dtypes == [torch.bfloat16, torch.float32] * 2
    assert all(value.dtype == torch.float32 for value in built.model.parameters())


def test_logit_scale_stays_below_ln_100(trainer):
    built = trainer(max_steps=2, learning_rate=0.5)
    with torch.no_grad():
        built.model.logit_scale.fill_(4.6)
    built.model.logit_scale.register_hook(lambda gradient: -torch.ones_like(gradient))  # always upwards
    built.train()
    assert built.model.logit_scale.item() == pytest.approx(math.log(100))


def test_weight_decay_spares_scale_biases_and_layer_norm(trainer):
    built = trainer(weight_decay=0.1)
    built.create_optimizer()
    decayed, spared = built.optimizer.param_groups[:2]
    names = {id(parameter): name for name, parameter in built.model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    spared = {names[id(parameter)] for parameter in spared["params"]}
    assert "logit_scale" in spared and all(
        "LayerNorm" in name or name.endswith("bias") or name == "logit_scale" for name in spared
    )
    decayed = {names[id(parameter)] for parameter in decayed["params"]}
    assert not any("LayerNorm" in name or name.endswith("bias") for name in decayed)
    assert not any(name.startswith("vision_model.") for name in spared | decayed)


def test_an_unlocked_tower_is_trained(trainer):
    built = trainer(freeze_vision=False, max_steps=1)
    before = {name: value.clone() for name, value in built.model.vision_model.named_parameters()}
    built.train()
    moved = [not torch.equal(value, before[name]) for name, value in built.model.vision_model.named_parameters()]
    assert built.model.vision_model.training and sum(moved) > len(moved) / 2


def test_only_the_last_blocks_are_trained(trainer):
    built = trainer(freeze_vision="last_n_blocks:1", max_steps=1)
    before = {name: value.clone() for name, value in built.model.vision_model.named_parameters()}
    built.train()
    for name, value in built.model.vision_model.named_parameters():
        if not name.startswith(("encoder.layers.1.", "post_layernorm.")):
            assert torch.equal(value, before[name]) and value not in built.optimizer.state, name
        elif not name.endswith("k_proj.bias"):  # shifts all scores of a query equally: its gradient is 0
            assert not torch.equal(value, before[name]) and value in built.optimizer.state, name


def test_only_training_images_are_augmented(train_args, data, bert_clip_path):
    args = load_arguments(train_args(test_file=str(data / "train.csv"), min_crop_area=0.3, random_flip=True))
    training, testing = load_datasets(args, load_processor(bert_clip_path))
    images = [[dataset.images.load(range(8)).columns["pixels"] for _ in range(2)] for dataset in (training, testing)]
    assert images[0][0].shape == images[1][0].shape and not torch.equal(*images[0])
    assert torch.equal(*images[1])


def test_each_epoch_crops_differently(trainer, bert_clip_path):
    built = trainer(per_device_train_batch_size=8, num_train_epochs=2, train_sampling_strategy="sequential")
    crops = ImageTransform(load_processor(bert_clip_path).image_processor, min_crop_area=0.3)
    built.train_dataset = Pairs(built.train_dataset.table, DecodedImages(built.train_dataset.table, crops))
    collate, seen = built.data_collator, []
    built.data_collator = lambda examples: seen.append(examples["images"]["pixels"]) or collate(examples)
    built.train()
    assert len(seen) == 2 and not torch.equal(*seen)


def test_the_loss_falls_far_below_that_of_guessing(trainer):
    built = trainer(num_train_epochs=80, per_device_train_batch_size=8, learning_rate=5e-3, logging_steps=10)
    built.train()
    losses = [entry["loss"] for entry in built.state.log_history if "loss" in entry]
    assert losses[-1] < math.log(8) / 4


def test_evaluation_equals_the_model_on_the_whole_set(trainer, data):
    built = trainer(test_file=str(data / "train.csv"), per_device_eval_batch_size=3)
    metrics = built.evaluate()
    batch = built._prepare_inputs(built.data_collator(built.eval_dataset.__getitems__(range(8))))
    with torch.no_grad():
        inputs = {key: batch["model_inputs"][key] for key in ("input_ids", "attention_mask", "pixel_values")}
        outputs = built.model.eval()(**inputs)
    hits = outputs.logits_per_text.argmax(dim=1) == torch.arange(8)
    assert metrics["eval_text_to_image_recall@1"] == pytest.approx(hits.double().mean().item())


def test_a_test_set_without_good_images_is_refused(trainer, data):
    built = trainer(test_file=write_pairs(data, "小狗,none.png"))
    with pytest.raises(ValueError, match="t.csv: none of its images"):
        built.evaluate()


# ---- when nothing is learnt ----


class AtStep(TrainerCallback):
    """Run an action at the end of a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def saved(output) -> list[str]:
    return sorted(path.name for path in output.glob("checkpoint-*"))


def test_missing_images_stop_the_run_and_it_resumes_when_they_are_back(trainer, data, tmp_path):
    keys = dict(max_steps=40, per_device_train_batch_size=2, logging_steps=4, train_sampling_strategy="sequential")
    keys.update(save_strategy="steps", save_steps=2, save_total_limit=2)
    images = {path: path.read_bytes() for path in (data / "images").iterdir()}
    built = trainer(**keys)
    built.add_callback(AtStep(4, lambda: [path.write_bytes(b"<html>") for path in images]))
    with pytest.raises(RunFailed, match="at step 8: no image could be read in the last 4 batches") as failure:
        built.train()
    assert "\n" not in str(failure.value)
    # Checkpoints saved during the outage did not replace those from before it.
    assert saved(tmp_path / "output") == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    for path, content in images.items():
        path.write_bytes(content)
    checkpoint = str(tmp_path / "output" / "checkpoint-8")
    require_whole(checkpoint)
    again = trainer(**{**keys, "max_steps": 12})
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 12 and saved(tmp_path / "output") == ["checkpoint-10", "checkpoint-12"]


ONE_DISK_FAILS = """
import os, pathlib, sys
import transformers
sys.path[:0] = [{root!r}]
import train_clip
from component.argument import load_arguments
from component.training.interruption import RunFailed, leave_group

args = load_arguments({args_file!r})
os.chdir(args.image_path + str(args.process_index))
args.image_path = "/proc/self/cwd"  # the same name on every node, but each node's own disk

class DiskFails(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == 1:
            for path in pathlib.Path(args.image_path).iterdir():
                path.write_bytes(b"<html>")

transformers.trainer.DEFAULT_CALLBACKS.append(DiskFails)
train_clip.log_on_first_process(args.process_index)
try:
    train_clip.train(args)
except RunFailed as failure:
    print("STOPPED", failure, flush=True)
leave_group()
"""


def test_images_missing_for_one_process_stop_all_and_are_logged_once(train_args, data, tmp_path):
    for rank in range(2):
        shutil.copytree(data / "images", data / f"images{rank}")
    keys = dict(image_feature_cache="off", ddp_backend="gloo", per_device_train_batch_size=2, num_train_epochs=9)
    script = tmp_path / "one_disk_fails.py"
    script.write_text(ONE_DISK_FAILS.format(root=ROOT, args_file=train_args(**keys, logging_steps=2)))
    result = run_python(script, processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("at step 6: no image could be read by process 1 in the last 4 batches") == 2
    named = re.findall(r"left out of .*train.csv: (\d.png): html", result.stderr)
    assert len(named) >= 4 and len(named) == len(set(named))
    assert saved(tmp_path / "output") == ["checkpoint-6"]


def test_consecutive_bad_images_are_not_an_outage(trainer, data):
    rows = [f"{caption},none{n}.png" for n, caption in enumerate(CAPTIONS)] + [f"{CAPTIONS[0]},0.png"]
    built = trainer(
        train_file=write_pairs(data, *rows), train_sampling_strategy="sequential", per_device_train_batch_size=1
    )
    assert built.train().metrics["train_bad_images"] == 8 and built.state.global_step == 18


@pytest.mark.parametrize("logging_steps", [1, 500])
def test_weights_of_nan_stop_the_run_and_are_never_saved(trainer, tmp_path, logging_steps):
    built = trainer(max_steps=9, save_strategy="steps", save_steps=2, save_total_limit=1, logging_steps=logging_steps)
    built.add_callback(AtStep(3, lambda: built.model.text_projection.weight.data.fill_(math.nan)))
    with pytest.raises(RunFailed, match="weights are NaN or infinite, and are not saved"):
        built.train()
    assert saved(tmp_path / "output") == ["checkpoint-2"]
    with pytest.raises(RunFailed):
        built.save_final()
    assert saved(tmp_path / "output") == ["checkpoint-2"]


def test_a_loss_of_exactly_0_stops_the_run_at_its_end(trainer, data):
    """All pairs are the same, so that none has a negative."""
    file = write_pairs(data, *[f"{CAPTIONS[0]},0.png"] * 8)
    built = trainer(train_file=file, mask_duplicates=True, max_steps=5, logging_steps=500)
    with pytest.raises(RunFailed, match="at step 5: the loss was exactly 0 in the last 5 batches"):
        built.train()


def test_a_batch_of_one_pair_is_reported(trainer, caplog):
    trainer(per_device_train_batch_size=1, max_steps=5).train()
    assert caplog.text.count("a single pair has no negatives") == 1


def test_early_stopping_does_not_count_the_evaluation_before_the_first_step(train_args, data):
    """The Trainer's best checkpoint does not either: the weights of step 0 are not saved."""
    keys = dict(eval_strategy="steps", test_file=str(data / "train.csv"), metric_for_best_model="mean_recall")
    args = load_arguments(train_args(**keys, early_stopping_patience=2))
    recalls = {0: 0.9, 1: 0.5, 2: 0.6, 3: 0.4, 4: 0.4}
    history = [{"step": step, "eval_mean_recall": recall} for step, recall in recalls.items()]

    def stops_at(step: int) -> bool:
        state = TrainerState(global_step=step, log_history=history[: step + 1])
        control = TrainerControl()
        StopEarly(args.early_stopping_patience).on_evaluate(args, state, control)
        return control.should_training_stop

    assert [step for step in recalls if stops_at(step)] == [4]


@pytest.mark.parametrize("batch", [3, 100])
def test_evaluation_keeps_every_pair(trainer, data, batch):
    built = trainer(test_file=str(data / "train.csv"), per_device_eval_batch_size=batch, dataloader_drop_last=True)
    assert built.evaluate()["eval_pairs"] == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_disk_is_reported_in_one_line(trainer, data, workers):
    (data / "images" / "2.png").unlink()
    (data / "images" / "2.png").symlink_to("/proc/self/mem")  # a regular file whose reading fails
    with pytest.raises(OSError, match="2.png") as error:
        trainer(dataloader_num_workers=workers).train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_of_images_is_reported_in_one_line(trainer, data, workers):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [(data / "images" / f"{row}.png").read_bytes() for row in range(8)]
    path = data / "pairs.parquet"
    parquet.write_table(pyarrow.table({"text": CAPTIONS, "image": images}), path, use_dictionary=False)
    with open(path, "r+b") as file:  # the texts stay whole
        file.seek(parquet.read_metadata(path).row_group(0).column(1).data_page_offset)
        file.write(bytes(16))
    with pytest.raises(ValueError, match="^.*pairs.parquet cannot be read as Parquet") as error:
        trainer(train_file=str(path), image_feature_cache="off", dataloader_num_workers=workers).train()
    assert "\n" not in str(error.value)


def test_a_killed_worker_is_reported_in_one_line(trainer):
    built = trainer(dataloader_num_workers=1, num_train_epochs=100)
    built.add_callback(AtStep(1, lambda: [process.kill() for process in multiprocessing.active_children()]))
    with pytest.raises(RunFailed, match="a process that loads data was lost .Killed") as error:
        built.train()
    assert "\n" not in str(error.value)


def test_the_seed_of_a_batch_decides_its_augmentation(train_args, bert_clip_path):
    args = load_arguments(train_args(min_crop_area=0.3, random_flip=True))
    dataset, _ = load_datasets(args, load_processor(bert_clip_path))
    state = torch.random.get_rng_state()
    one, same, other = (
        dataset.__getitems__(next(iter(SharedBatches(8, 8, seed, shuffle=False))))["images"]["pixels"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- what the trainer rests on ----


def test_the_private_names_of_transformers_exist_and_are_listed():
    """resumable_trainer.py lists them; a release of transformers that drops one fails here first."""
    sources = {cls: textwrap.dedent(inspect.getsource(cls)) for cls in (ResumableTrainer, SavingTrainer, CLIPTrainer)}
    trees = [ast.parse(source) for source in sources.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    ours |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    overridden = {node.attr for node in attributes if ast.unparse(node.value) == "super()"}
    read = {node.attr for node in attributes if ast.unparse(node.value) == "self"} - ours
    for name in overridden:
        assert callable(getattr(Trainer, name, None)), name
    for name in read:
        assert f"self.{name} = " in inspect.getsource(Trainer), name
    comment = "".join(re.findall("(?m)^#(.*)$", inspect.getsource(inspect.getmodule(ResumableTrainer))))
    assert set(re.findall(r" (_\w+)", comment)) == overridden | read


def test_dimensions_stay_in_order_only_where_they_are_trained_so(trainer, bert_clip_path, tmp_path, caplog):
    model, processor = load_checkpoint(bert_clip_path)
    shorten(model, torch.eye(16))
    save_checkpoint(model, processor, str(tmp_path / "ordered"))
    ordered = {"clip_pretrain_path": str(tmp_path / "ordered")}
    assert not hasattr(trainer(**ordered).model.config, "ordered_dims")
    assert trainer(**ordered, matryoshka_dims=[4]).model.config.ordered_dims and "in no order" not in caplog.text
    assert trainer(matryoshka_dims=[16, 4]).model.config.ordered_dims and "in no order" in caplog.text
    with pytest.raises(ValueError, match="`matryoshka_dims` has 17, but the vectors have 16 dimensions"):
        trainer(matryoshka_dims=[17])
    for dims in ([], [0], [2.5], 4):
        with pytest.raises(ValueError, match="`matryoshka_dims` is .*; expected .*list of"):
            trainer(matryoshka_dims=dims)
