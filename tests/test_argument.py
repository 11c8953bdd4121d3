"""What a JSON of training arguments may hold, and what is said about one that cannot run."""

import json
import os

import pytest
from conftest import ROOT

from component.argument import load_arguments


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
    assert (args.optim, args.logging_steps, args.save_steps, args.save_total_limit) == ("adamw_torch", 500, 500, 3)
    assert args.seed == 42 and args.freeze_vision and not args.load_from_bert_clip
    assert recipe["fp16"] and not args.fp16  # there is no GPU in use


def test_keys_of_older_versions_are_translated(load):
    args = load(no_cuda=True, evaluation_strategy="no", warmup_ratio=0.1, per_gpu_train_batch_size=3, adafactor=True)
    assert args.use_cpu and args.eval_strategy == "no" and args.optim == "adafactor"
    assert args.get_warmup_steps(200) == 20


def test_todays_key_wins_over_its_older_name(load):
    assert load(per_gpu_train_batch_size=3).per_device_train_batch_size == 4


def test_warmup_steps_win_over_warmup_ratio(load):
    assert load(warmup_ratio=0.5, warmup_steps=7).get_warmup_steps(200) == 7
    assert load(warmup_steps=7, warmup_ratio=0.5).get_warmup_steps(200) == 7
    assert load(warmup_steps=0, warmup_ratio=0.5).get_warmup_steps(200) == 100


def test_a_key_without_effect_is_named_and_passed_over(load, caplog):
    load(overwrite_output_dir=True)
    assert "overwrite_output_dir" in caplog.text


@pytest.mark.parametrize(
    ("value", "meaning"), [("False", False), ("false", False), (0, False), ("True", True), (True, True), (1, True)]
)
def test_booleans_written_as_words(load, value, meaning):
    assert load(freeze_vision=value).freeze_vision is meaning


@pytest.mark.parametrize(
    ("value", "blocks"), [(True, 0), (False, None), ("last_n_blocks:1", 1), ("last_n_blocks:12", 12)]
)
def test_how_many_blocks_of_the_vision_tower_are_trained(load, value, blocks):
    assert load(freeze_vision=value).trainable_vision_blocks == blocks


@pytest.mark.parametrize("keys", [{}, {"image_feature_cache": "there"}])
def test_images_are_cached_where_they_do_not_change(load, tmp_path, keys):
    assert load(**keys).image_feature_cache == keys.get("image_feature_cache", str(tmp_path / "image_features"))


@pytest.mark.parametrize(
    "keys",
    [{"freeze_vision": False}, {"freeze_vision": "last_n_blocks:1"}, {"min_crop_area": 0.5}, {"random_flip": 1}],
)
def test_images_that_change_are_not_cached(load, keys):
    assert load(**keys).image_feature_cache == "off"
    with pytest.raises(ValueError, match="`image_feature_cache` is there.*freeze_vision true and without"):
        load(**keys, image_feature_cache="there")


def test_a_list_of_files_comes_from_the_file_or_from_set(train_args, data):
    names = [str(data / "train.csv"), str(data / "{train,train}.csv")]
    assert load_arguments(train_args(train_file=names)).train_file == names
    assert load_arguments(train_args(), [f"train_file={json.dumps(names)}"]).train_file == names
    with pytest.raises(ValueError, match="`train_file`: there is no file nowhere.csv"):
        load_arguments(train_args(train_file=[*names, "nowhere.csv"]))


def test_shards_alone_need_no_image_path(load, data):
    (data / "0.tar").touch()
    assert load(train_file=str(data / "*.tar"), image_path=None).image_path is None
    with pytest.raises(ValueError, match="`image_path` is missing"):
        load(train_file=str(data / "0.tar"), test_file=str(data / "train.csv"), image_path=None)


def test_numbers_written_as_strings(load):
    args = load(learning_rate="5e-5", max_seq_length="20", save_total_limit=None)
    assert args.learning_rate == 5e-5 and args.max_seq_length == 20 and args.save_total_limit is None


def test_set_overrides_the_file(train_args):
    args = load_arguments(train_args(), ["learning_rate=2e-4", "output_dir=there", "freeze_vision=false"])
    assert args.learning_rate == 2e-4 and args.output_dir == "there" and args.freeze_vision is False


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, "`learning_rat`.*`learning_rate`"),
        ({"warmup_ration": 0.1}, "`warmup_ratio`"),
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
        ({"image_path": 7}, "`image_path` is 7; expected a string"),
        ({"image_path": ["a"]}, "`image_path` is .'a'.; expected a string or null"),
        ({"train_file": ["a", 1]}, "`train_file` is .*; expected a string or a list of strings or null"),
        ({"train_file": []}, "`train_file` is missing"),
        ({"image_path": None}, "`image_path` is missing"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"train_file": "nowhere.csv"}, "`train_file`: there is no file nowhere.csv"),
        ({"test_file": "nowhere.csv"}, "`test_file`: there is no file nowhere.csv"),
        ({"image_path": "nowhere"}, "`image_path`: there is no folder nowhere"),
        ({"clip_pretrain_path": "./nowhere"}, "`clip_pretrain_path`: ./nowhere is not a model folder"),
        ({"bert_pretrain_path": None}, "`bert_pretrain_path` is missing"),
        ({"clip_pretrain_path": None}, "`clip_pretrain_path` is missing"),
        ({"clip_pretrain_path": None, "load_from_bert_clip": True}, "`clip_pretrain_path` is missing"),
        ({"train_file": None}, "`train_file` is missing"),
        ({"output_dir": None}, "`output_dir` is missing"),
        ({"max_seq_length": 2}, "`max_seq_length` is 2"),
        ({"eval_strategy": "steps"}, "no `test_file`"),
        ({"fsdp": True}, "torchrun --nproc_per_node"),
        ({"fsdp": True, "contrastive_chunk_size": 2}, "`contrastive_chunk_size` does not go with `fsdp`"),
        ({"fsdp": True, "text_group_size": 2}, "`text_group_size` does not go with `fsdp`"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "version 1"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "pip install deepspeed|ZeRO stage 3"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_in_one_line(load, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON.*line 1"), ("[]", "one JSON object"), (None, "cannot be read")]
)
def test_a_file_that_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_arguments(str(path))


def test_set_without_a_value_is_refused(train_args):
    with pytest.raises(ValueError, match="key=value"):
        load_arguments(train_args(), ["max_steps"])


def test_fp16_without_a_gpu_falls_back_with_a_warning(load, caplog):
    assert load(fp16=True).fp16 is False
    assert "fp32" in caplog.text


def test_a_json_for_several_processes_trains_in_one(load):
    assert load(ddp_backend="gloo").distributed_state.distributed_type == "NO"
