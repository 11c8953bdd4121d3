"""What a JSON of training arguments may contain, and the errors for one that cannot run."""

import argparse
import json
import os
import re
import shlex
import sys
import types
from dataclasses import fields
from importlib.machinery import ModuleSpec
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from transformers import TrainingArguments

from component.argument import CLIPTrainingArguments, load_arguments, read_arguments
from component.pairs.text_groups import CPU_COSTS, FEWEST_GROUPS
from component.recipe.old_keys import RENAMED


@pytest.fixture
def load(train_args):
    return lambda **keys: load_arguments(train_args(**keys))


def test_the_published_recipe_keeps_its_meaning(train_args, monkeypatch):
    with open(os.path.join(ROOT, "train_args", "train_clip.json"), encoding="utf-8") as file:
        recipe = json.load(file)
    with open(train_args(), encoding="utf-8") as file:
        here = json.load(file)
    paths = ("output_dir", "train_file", "image_path", "clip_pretrain_path", "bert_pretrain_path", "use_cpu")
    args = load_arguments(train_args(**{**recipe, **{key: here[key] for key in paths}}))
    assert recipe["clip_pretrain_path"] == "openai/clip-vit-base-patch32"
    assert recipe["bert_pretrain_path"] == "Langboat/mengzi-bert-base"
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (768, 256)
    assert (args.num_train_epochs, args.learning_rate, args.lr_scheduler_type) == (50, 5e-5, "cosine")
    assert (args.warmup_steps, args.max_seq_length, args.weight_decay, args.max_grad_norm) == (1000, 100, 0, 1)
    assert (args.logging_steps, args.save_steps, args.save_total_limit) == (500, 500, 3)
    assert args.optim == "adamw_torch_fused"  # published: adamw_torch, which gives the same numbers
    assert args.seed == 42 and args.freeze_vision and not args.load_from_bert_clip
    assert recipe["fp16"] and not args.fp16  # no GPU is in use


def test_the_recipe_for_fine_tuning_is_valid(train_args, data, bert_clip_path):
    files = {"train_file": str(data / "train.csv"), "test_file": str(data / "train.csv"), "image_path": str(data)}
    overrides = {"clip_pretrain_path": bert_clip_path, "output_dir": str(data / "output"), **files}
    path = os.path.join(ROOT, "train_args", "finetune.json")
    args = load_arguments(path, [f"{key}={value}" for key, value in overrides.items()])
    assert args.load_from_bert_clip and args.freeze_vision and args.mask_duplicates
    assert (args.learning_rate, args.num_train_epochs, args.weight_decay) == (3e-5, 10, 0.1)  # WiSE-FT's
    assert args.get_warmup_steps(200) == 20 and args.metric_for_best_model == "mean_recall"


def test_keys_of_the_published_recipe_keep_their_meaning(load):
    args = load(no_cuda=True, evaluation_strategy="no", warmup_ratio=0.1)
    assert args.use_cpu and args.eval_strategy == "no" and args.get_warmup_steps(200) == 20


def test_todays_key_wins_over_its_older_name(load):
    assert load(no_cuda=False, use_cpu=True).use_cpu


def test_warmup_steps_win_over_warmup_ratio(load):
    assert load(warmup_ratio=0.5, warmup_steps=7).get_warmup_steps(200) == 7
    assert load(warmup_steps=7, warmup_ratio=0.5).get_warmup_steps(200) == 7
    assert load(warmup_steps=0, warmup_ratio=0.5).get_warmup_steps(200) == 100


@pytest.mark.parametrize(
    ("value", "meaning"), [("False", False), ("false", False), (0, False), ("True", True), (True, True), (1, True)]
)
def test_booleans_written_as_words(load, value, meaning):
    assert load(freeze_vision=value).freeze_vision is meaning


@pytest.mark.parametrize(
    ("value", "blocks"), [(True, 0), (False, None), ("last_n_blocks:1", 1), ("last_n_blocks:12", 12)]
)
def test_the_number_of_trained_blocks_of_the_vision_tower(load, value, blocks):
    assert load(freeze_vision=value).trainable_vision_blocks == blocks


@pytest.mark.parametrize("keys", [{}, {"image_feature_cache": "image_features"}])
def test_images_are_cached_if_they_do_not_change(load, tmp_path, keys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(**keys).image_feature_cache == str(tmp_path / "image_features")


@pytest.mark.parametrize(
    ("keys", "folder"),
    [({}, "pair_tables"), ({"pair_table": "there"}, "there"), ({"pair_table": "Auto"}, "pair_tables")],
)
def test_the_prepared_table_is_next_to_output_dir_or_where_it_is_set(load, tmp_path, keys, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(**keys).pair_table == str(tmp_path / folder)
    assert load(pair_table="OFF").pair_table == "off"


@pytest.mark.parametrize(
    "keys",
    [{"freeze_vision": False}, {"freeze_vision": "last_n_blocks:1"}, {"min_crop_area": 0.5}, {"random_flip": 1}],
)
def test_images_that_change_are_not_cached(load, keys):
    assert load(**keys).image_feature_cache == "off"
    with pytest.raises(ValueError, match="`image_feature_cache` is .*there.*freeze_vision true and without"):
        load(**keys, image_feature_cache="there")


def test_a_list_of_files_comes_from_the_file_or_from_set(train_args, data):
    names = [str(data / "train.csv"), str(data / "{train,train}.csv")]
    assert load_arguments(train_args(train_file=names)).train_file == names
    assert load_arguments(train_args(), [f"train_file={json.dumps(names)}"]).train_file == names
    with pytest.raises(ValueError, match="`train_file`: /.*/nowhere.csv: no such file"):
        load_arguments(train_args(train_file=[*names, "nowhere.csv"]))


def test_a_missing_test_file_comes_with_the_command_that_makes_it(load, data):
    with pytest.raises(ValueError, match="`test_file`: .*held.csv: no such file.* python -c ") as error:
        load(test_file=str(data / "held.csv"))
    assert "\n" not in str(error.value)
    _, code = shlex.split(re.search('-c ".*" and', str(error.value))[0])[:2]
    exec(code, {})
    train, test = pd.read_csv(data / "train_without_test.csv"), pd.read_csv(data / "held.csv")
    assert len(train) + len(test) == 8 and len(test) >= 1 and not set(train.filename) & set(test.filename)


def test_shards_alone_need_no_image_path(load, data):
    (data / "0.tar").touch()
    assert load(train_file=str(data / "*.tar"), image_path=None).image_path is None
    with pytest.raises(ValueError, match="`image_path` is missing"):
        load(train_file=str(data / "0.tar"), test_file=str(data / "train.csv"), image_path=None)


def test_numbers_written_as_strings(load):
    args = load(learning_rate="5e-5", max_seq_length="20", save_total_limit=None)
    assert args.learning_rate == 5e-5 and args.max_seq_length == 20 and args.save_total_limit is None


@pytest.mark.parametrize(
    ("keys", "size", "costs"),
    [
        ({}, None, CPU_COSTS),
        ({"contrastive_chunk_size": 3}, 3, CPU_COSTS),
        ({"text_group_size": 3}, 3, FEWEST_GROUPS),
    ],
)
def test_texts_are_grouped_by_cost_if_no_size_is_given(load, keys, size, costs):
    args = load(**keys)
    assert (args.group_size, args.group_costs) == (size, costs)


def test_a_number_given_to_set_is_text_for_a_key_of_text(train_args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = load_arguments(train_args(), ["output_dir=2024", "run_name=1e3", "test_file=null"])
    assert args.output_dir == str(tmp_path / "2024") and args.run_name == "1e3" and args.test_file is None


def test_set_overrides_the_file(train_args):
    args = load_arguments(train_args(), ["learning_rate=2e-4", "output_dir=there", "freeze_vision=false"])
    assert args.learning_rate == 2e-4 and args.output_dir == os.path.abspath("there") and args.freeze_vision is False


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, "`learning_rat`.*`learning_rate`"),
        ({"warmup_ration": 0.1}, "`warmup_ratio`"),
        ({"mp_parameters": ""}, "Unknown argument `mp_parameters`. Remove it.$"),
        ({"epochs": 3}, "Unknown argument `epochs`. Did you mean `num_train_epochs`\\?$"),
        ({"batch_size": 3}, "Unknown argument `batch_size`. Did you mean .*`per_device_train_batch_size`\\?$"),
        ({"max_steps": "many"}, "`max_steps` is 'many'; expected a whole number"),
        ({"max_steps": 1.5}, "`max_steps` is 1.5"),
        ({"learning_rate": None}, "`learning_rate` is None; expected a number"),
        ({"fp16": "perhaps"}, "`fp16` is 'perhaps'; expected true/false"),
        ({"freeze_vision": "perhaps"}, "`freeze_vision` is 'perhaps'; expected true, false, or last_n_blocks:k"),
        ({"freeze_vision": "last_n_blocks:0"}, "k from 1"),
        ({"freeze_vision": "last_n_blocks:-1"}, "k from 1"),
        ({"freeze_vision": None}, "`freeze_vision` is None"),
        ({"min_crop_area": 1.5}, "`min_crop_area` is 1.5; expected a share"),
        ({"min_crop_area": 0}, "`min_crop_area` is 0"),
        ({"learning_rate": -1}, "`learning_rate` is -1.0; expected a number from 0"),
        ({"learning_rate": "inf"}, "`learning_rate` is inf; expected a number from 0"),
        ({"learning_rate": "nan"}, "`learning_rate` is 'nan'; expected a number"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1"),
        ({"adam_beta1": 1}, "`adam_beta1` is 1.0; expected a number from 0 to below 1"),
        ({"max_steps": 0}, "`max_steps` is 0; expected a whole number from 1, or -1"),
        ({"max_steps": -5}, "`max_steps` is -5"),
        ({"num_train_epochs": 0}, "`num_train_epochs` is 0.0; expected a number above 0"),
        ({"save_steps": 0}, "`save_steps` is 0.0; expected a number of steps"),
        ({"save_steps": 2.5}, "`save_steps` is 2.5"),
        ({"logging_steps": -1}, "`logging_steps` is -1.0"),
        ({"warmup_steps": 1.5}, "`warmup_steps` is 1.5"),
        ({"warmup_ratio": 1}, "`warmup_ratio` is 1.0; expected a share of all steps"),
        ({"warmup_ratio": -0.1}, "`warmup_ratio` is -0.1"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; expected a number of pairs"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` is 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0"),
        ({"contrastive_chunk_size": 0}, "`contrastive_chunk_size` is 0"),
        ({"lora_rank": 0}, "`lora_rank` is 0; expected a whole number from 1"),
        ({"lora_rank": -4}, "`lora_rank` is -4"),
        ({"lora_rank": 1.5}, "`lora_rank` is 1.5; expected a whole number"),
        ({"lora_rank": "many"}, "`lora_rank` is 'many'"),
        ({"lora_rank": 2, "lora_alpha": 0}, "`lora_alpha` is 0.0; expected a number above 0"),
        ({"lora_rank": 2, "lora_alpha": -1}, "`lora_alpha` is -1.0"),
        ({"lora_rank": 2, "lora_alpha": "inf"}, "`lora_alpha` is inf"),
        ({"lora_rank": 2, "lora_dropout": -0.1}, "`lora_dropout` is -0.1; expected a number from 0 to below 1"),
        ({"lora_rank": 2, "lora_dropout": 1}, "`lora_dropout` is 1.0"),
        ({"lora_rank": 2, "lora_targets": []}, "`lora_targets` is .*; expected names of layers, or null"),
        ({"lora_rank": 2, "lora_targets": [""]}, "`lora_targets` is"),
        ({"lora_rank": 2, "lora_targets": 7}, "`lora_targets` is 7; expected a string or a list of strings"),
        ({"lora_targets": ["query"]}, "`lora_targets` is given, but without `lora_rank`"),
        ({"lora_alpha": 16}, "`lora_alpha` is given, but without `lora_rank`"),
        ({"lora_dropout": 0.1}, "`lora_dropout` is given, but without `lora_rank`"),
        ({"lora_rank": 2, "fsdp": True}, "`lora_rank` does not work with `fsdp`"),
        ({"lora_rank": 2, "deepspeed": {"zero_optimization": {"stage": 2}}}, "`lora_rank` does not work with `deepsp"),
        ({"learning_rates": {"text_model": -1}}, "`learning_rates.text_model` is -1.0; expected a number from 0"),
        ({"learning_rates": {"text_model": "nan"}}, "`learning_rates.text_model` is 'nan'; expected a number"),
        ({"learning_rates": {"text_model": "inf"}}, "`learning_rates.text_model` is inf"),
        ({"learning_rates": {"text_model": None}}, "`learning_rates.text_model` is None; expected a number"),
        ({"learning_rates": {"text_model": True}}, "`learning_rates.text_model` is True; expected a number"),
        ({"learning_rates": 1e-3}, "`learning_rates` is 0.001; expected {.* or null"),
        ({"learning_rates": {}}, "`learning_rates` is {}"),
        ({"layer_decay": 0}, "`layer_decay` is 0.0; expected a number above 0, up to 1"),
        ({"layer_decay": 1.1}, "`layer_decay` is 1.1"),
        ({"layer_decay": "nan"}, "`layer_decay` is 'nan'"),
        ({"layer_decay": {"text_model": 2}}, "`layer_decay.text_model` is 2.0"),
        ({"layer_decay": {"text": 0.5}}, "`layer_decay` is .*; expected a number, or one for each of text_model, v"),
        (
            {"layer_decay": 0.9, "optim_target_modules": "all"},
            "`layer_decay` does not work with `optim_ta",
        ),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` is 0; expected a whole number from 1"),
        ({"early_stopping_patience": 2}, "`early_stopping_patience` counts evaluations, but there are none"),
        ({"save_total_limit": -1}, "`save_total_limit` is -1"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers` is -1"),
        ({"seed": -1}, "`seed` is -1; expected a whole number from 0"),
        ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers` .* no workers"),
        ({"dataloader_prefetch_factor": 2}, "`dataloader_prefetch_factor` .* no workers"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ({"use_liger_kernel": True}, "`use_liger_kernel`"),
        ({"parallelism_config": {"tp_size": 2}}, "`parallelism_config`"),
        ({"debug": "underflow_overflow"}, "`debug` underflow_overflow"),
        ({"optim": "adamw"}, "`optim` is 'adamw'; expected one of adamw_torch, "),
        ({"optim": "lomo"}, "`optim` lomo.*install"),
        ({"optim": "adamw_bnb_8bit"}, "`optim` adamw_bnb_8bit.*install"),
        ({"optim": "sgd", "optim_args": "momentum"}, "`optim_args` momentum"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "`optim_args` momentum=much: .*float"),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9, weight=1"},
            "`optim_args`.*: this .* has no argument weight$",
        ),
        ({"optim": "adamw_torch", "optim_args": "betas=0.8,eps=1"}, "this optimizer has no argument betas, eps$"),
        ({"torch_compile_backend": "nonsense"}, "`torch_compile_backend` is 'nonsense'; expected one of .*inductor"),
        ({"torch_compile": True, "torch_compile_mode": "fastest"}, "`torch_compile_mode` fastest: .*reduce-overhead"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "`lr_scheduler_type` cosine_with_min_lr.*min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "`lr_scheduler_type` warmup_stable_decay.*num_decay_steps"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "`lr_scheduler_kwargs` {'cycles': 2}"),
        ({"report_to": "nothing"}, "`report_to` is 'nothing'; expected one of"),
        ({"report_to": ["none", "neptune"]}, "`report_to` is neptune, whose package is not installed"),
        ({"push_to_hub": True}, "`push_to_hub` needs a token"),
        ({"log_level": "loud"}, "`log_level` is 'loud'; expected one of .*debug, "),
        ({"accelerator_config": {"unknown": 1}}, "transformers cannot take these arguments: .*unknown"),
        ({"save_strategy": "best"}, "Set metric_for_best_model"),
        ({"metric_for_best_model": "nonsense"}, "is 'nonsense'; expected one of loss, .*mean_recall"),
        ({"metric_for_best_model": "eval_recall"}, "is 'recall'; expected one of"),
        ({"load_best_model_at_end": True}, "save and eval strategy to match"),
        ({"deepspeed": "nowhere.json"}, "`deepspeed`: there is no file"),
        ({"output_dir": "~no-such-user/output"}, "`output_dir` is ~no-such-user/output, but there is no such user"),
        ({"output_dir": os.path.join(ROOT, "README.md", "output")}, "README.md is a file"),
        ({"fsdp": "hybrid_shard"}, "`fsdp` is 'hybrid_shard'; expected true/false"),
        ({"image_path": 7}, "`image_path` is 7; expected a string"),
        ({"pair_table": ""}, "`pair_table` is empty: name a path, or leave it out"),
        ({"train_file": ["a.csv", " "]}, "`train_file` is empty"),
        ({"resume_from_checkpoint": 500}, "`resume_from_checkpoint` is 500; expected a string or true/false or null"),
        ({"resume_from_checkpoint": ["output"]}, "`resume_from_checkpoint` is .*; expected a string or true/false"),
        ({"accelerator_config": 0}, "`accelerator_config` is 0; expected a string or null or an object"),
        ({"gradient_checkpointing_kwargs": []}, "`gradient_checkpointing_kwargs` is .*; expected .* or an object"),
        ({"image_path": ["a"]}, "`image_path` is .'a'.; expected a string or null"),
        ({"train_file": ["a", 1]}, "`train_file` is .*; expected a string or a list of strings or null"),
        ({"train_file": []}, "`train_file` is missing"),
        ({"image_path": None}, "`image_path` is missing"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"train_file": "nowhere.csv"}, "`train_file`: /.*/nowhere.csv: no such file"),
        ({"test_file": "nowhere.csv"}, "`test_file`: /.*/nowhere.csv: no such file"),
        (
            {"image_path": "nowhere"},
            "`train_file`: the image folder /.*/nowhere does not exist",
        ),
        ({"clip_pretrain_path": "./nowhere"}, "`clip_pretrain_path`: /.*/nowhere is not a model folder"),
        ({"bert_pretrain_path": None}, "`bert_pretrain_path` is missing"),
        ({"clip_pretrain_path": None}, "`clip_pretrain_path` is missing"),
        ({"clip_pretrain_path": None, "load_from_bert_clip": True}, "`clip_pretrain_path` is missing"),
        ({"train_file": None}, "`train_file` is missing"),
        ({"output_dir": None}, "`output_dir` is missing"),
        ({"max_seq_length": 2}, "`max_seq_length` is 2"),
        ({"eval_strategy": "steps"}, "no `test_file`"),
        ({"fsdp": True}, "torchrun --nproc_per_node"),
        ({"fsdp": True, "contrastive_chunk_size": 2}, "`contrastive_chunk_size` does not work with `fsdp`"),
        ({"fsdp": True, "text_group_size": 2}, "`text_group_size` does not work with `fsdp`"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "version 1"),
        (
            {"layer_decay": 0.9, "deepspeed": {"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR"}}},
            "pip install deepspeed|`deepspeed` has its own scheduler",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "pip install deepspeed|ZeRO stage 3"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_in_one_line(load, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON.*line 1"),
        ('{"seed": 1,\n}', "is not JSON: a comma before the closing bracket in line 2"),
        ('{"train_file": ["a", ]}', "a comma before the closing bracket in line 1"),
        ("[]", "one JSON object"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_arguments(str(path))


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"seed": 1, "seed": 2}')
    with pytest.raises(ValueError, match="a.json: the key `seed` is given twice"):
        load_arguments(str(tmp_path / "a.json"))


def test_a_path_that_the_locale_cannot_pass_on_is_refused(load, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "gbk")
    load()
    with pytest.raises(
        ValueError, match="`output_dir` is .*/输出, but the encoding of this locale is gbk.*PYTHONUTF8=1"
    ):
        load(output_dir=str(tmp_path / "输出"))


def test_all_paths_become_absolute(load, data, tmp_path, monkeypatch):
    """With ~ as the parent of the working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text("{}")
    args = load(
        output_dir="~/out/run",
        train_file=["~/data/train.csv", "../data/train.csv"],
        test_file="~/data/train.csv",
        image_path="../data/images",
        resume_from_checkpoint="~/out/run/checkpoint-1",
        accelerator_config="~/ds.json",
    )
    assert args.output_dir == str(tmp_path / "out" / "run")
    assert args.image_feature_cache == str(tmp_path / "out" / "image_features")
    assert [os.path.samefile(file, data / "train.csv") for file in (*args.train_file, args.test_file)] == [True] * 3
    assert args.resume_from_checkpoint == str(tmp_path / "out" / "run" / "checkpoint-1")
    assert os.path.isabs(args.image_path)
    assert load(image_feature_cache="~/there").image_feature_cache == str(tmp_path / "there")
    with pytest.raises(ValueError, match=f"`bert_pretrain_path`: {tmp_path}/nowhere is not a model folder"):
        load(bert_pretrain_path="~/nowhere")


@pytest.mark.parametrize(
    ("metric", "better"), [("loss", False), ("mean_recall", True), ("eval_text_to_image_median_rank", False)]
)
def test_a_lower_rank_is_better(load, data, metric, better):
    args = load(metric_for_best_model=metric, eval_strategy="epoch", test_file=str(data / "train.csv"))
    assert args.greater_is_better is better


def test_early_stopping_needs_a_metric(load, data):
    with pytest.raises(ValueError, match="`early_stopping_patience` is 2, but by which metric"):
        load(early_stopping_patience=2, eval_strategy="epoch", test_file=str(data / "train.csv"))


def test_wandb_asks_for_its_login_before_the_data_is_read(load, monkeypatch):
    wandb = types.ModuleType("wandb")
    wandb.__spec__, wandb.run = ModuleSpec("wandb", None), None

    def login():
        raise RuntimeError("No API key configured.")

    wandb.login = login
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ValueError, match="`report_to` wandb needs a login: run `wandb login`.*No API key") as error:
        load(report_to="wandb")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert load(report_to="wandb").report_to == ["wandb"]


def test_set_without_a_value_is_refused(train_args):
    with pytest.raises(ValueError, match="key=value"):
        load_arguments(train_args(), ["max_steps"])


def test_fp16_without_a_gpu_falls_back_with_a_warning(load, caplog):
    assert load(fp16=True).fp16 is False
    assert "fp32" in caplog.text


def test_a_json_for_several_processes_trains_in_one(load):
    assert load(ddp_backend="gloo").distributed_state.distributed_type == "NO"


# ---- the documentation ----

DOCUMENTATION = [Path(ROOT, "README.md"), Path(ROOT, "README_EN.md"), *sorted(Path(ROOT, "docs").rglob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTATION}
COMMANDS = {
    " ".join(command.replace("\\\n", " ").split())
    for text in TEXTS.values()
    for command in re.findall(r"train_clip\.py (--(?:\\\n|[^\n$&`…\\])*)(?:&?\n|`)", text)
}
OLDER = {"warmup_ratio", *RENAMED}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_training_command_of_the_documentation_is_valid(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_args_file", required=True)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args(shlex.split(command))
    read_arguments(options.train_args_file, options.set)


def test_the_deepspeed_config_is_a_file(load, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        load(deepspeed="train_args/deepspeed_zero2.json")


def test_the_table_of_arguments_lists_existing_keys_and_all_of_ours():
    rows = "".join(re.findall(r"(?m)^\| 键 \| 默认 \|.*\n(?:\|.*\n)+", "".join(TEXTS.values())))
    listed = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows.splitlines())))
    existing = {f.name for f in fields(CLIPTrainingArguments)}
    ours = existing - {f.name for f in fields(TrainingArguments)}
    assert listed and listed <= existing | OLDER
    assert ours <= listed
