"""The JSON file of one experiment → typed, checked training arguments."""

import difflib
import json
import logging
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments

from component.model_path import is_hub_name
from component.pairs.sources import expand, is_shard

logger = logging.getLogger(__name__)

# Keys of older transformers versions, and what they are called today.
RENAMED = {
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
# Keys whose choice is gone, because transformers now always does one thing.
RETIRED = {
    "overwrite_output_dir",
    "save_safetensors",
    "logging_dir",
    "fp16_backend",
    "fp16_opt_level",
    "half_precision_backend",
    "use_mps_device",
    "use_ipex",
    "jit_mode_eval",
    "ray_scope",
    "tpu_num_cores",
    "past_index",
    "include_tokens_per_second",
}

CPU_TEXT_GROUP = 16  # where no kernel waits to be launched, only the padding counts


@dataclass
class CLIPTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, and what BertCLIP needs beside them.

    Raises ValueError, before anything is loaded, for a recipe that cannot run.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder for checkpoints, logs and results."})
    clip_pretrain_path: str | None = field(
        default=None, metadata={"help": "CLIP folder or hub name; with load_from_bert_clip, a BertCLIP folder."}
    )
    bert_pretrain_path: str | None = field(default=None, metadata={"help": "Chinese BERT folder or hub name."})
    load_from_bert_clip: bool = field(
        default=False, metadata={"help": "Take everything, text tower included, from clip_pretrain_path."}
    )
    train_file: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "CSV or Parquet table with the columns text and filename, WebDataset shards, or a list of these."
        },
    )
    test_file: str | list[str] | None = field(default=None, metadata={"help": "The same for evaluation; null: none."})
    image_path: str | None = field(
        default=None, metadata={"help": "Folder that the column `filename` refers to; shards alone need none."}
    )
    max_seq_length: int = field(
        default=100, metadata={"help": "Tokens per text, [CLS] and [SEP] included; longer texts are cut."}
    )
    loss_type: str = field(
        default="clip", metadata={"help": "clip: InfoNCE over the batch; siglip: a sigmoid loss for each pair."}
    )
    mask_duplicates: bool = field(
        default=False,
        metadata={"help": "Pairs of a batch with equal texts or equal file names are no negatives of each other."},
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Gradient cache: the towers see so many pairs at a time, the loss sees the whole batch. Needs the "
            "memory of one chunk, and one more forward pass. null: off."
        },
    )
    text_group_size: int | None = field(
        default=None,
        metadata={
            "help": "The texts of a batch go through the tower in groups of so many, sorted by length, which saves "
            "padding; null: the whole batch on a GPU, 16 without one."
        },
    )
    freeze_vision: bool | str = field(
        default=True,
        metadata={
            "help": "Lock the vision tower (LiT); false: train it; last_n_blocks:k: train its last k blocks alone."
        },
    )
    min_crop_area: float | None = field(
        default=None,
        metadata={"help": "Train on random pieces with at least this share of a picture's area, e.g. 0.5; null: off."},
    )
    random_flip: bool = field(default=False, metadata={"help": "Mirror every second training picture."})
    image_feature_cache: str = field(
        default="auto",
        metadata={
            "help": "Compute the locked tower's output of each picture once, and keep it in this folder; auto: in "
            "`image_features` beside output_dir; off: put every picture through the tower in every epoch."
        },
    )
    resume_from_checkpoint: str | bool | None = field(
        default=None,
        metadata={
            "help": "Go on from this checkpoint folder; true: from the last whole one in output_dir; auto: the same, "
            "or start anew where there is none."
        },
    )
    # Other defaults than transformers': a frozen tower leaves no parameter unused, and the collator needs all columns.
    ddp_find_unused_parameters: bool | None = False
    remove_unused_columns: bool = False
    fsdp: bool | None = None  # transformers' own hint is that of the older form, a string

    def __post_init__(self):
        for key in ("output_dir", "train_file", "clip_pretrain_path"):
            if not getattr(self, key):
                raise ValueError(f"`{key}` is missing: {self._help(key)}")
        if not (self.load_from_bert_clip or self.bert_pretrain_path):
            raise ValueError(
                f"`bert_pretrain_path` is missing: {self._help('bert_pretrain_path')} "
                "To go on from a whole BertCLIP folder, set load_from_bert_clip to true."
            )
        if self.max_seq_length < 3:
            raise ValueError(f"`max_seq_length` is {self.max_seq_length}; [CLS], [SEP] and one token need at least 3.")
        for key in ("train_file", "test_file"):
            self._check_pair_files(key)
        if self.image_path and not os.path.isdir(self.image_path):
            raise ValueError(f"`image_path`: there is no folder {self.image_path} (seen from {os.getcwd()}).")
        for key in ("clip_pretrain_path", "bert_pretrain_path"):
            self._check_model_path(key)
        if self.eval_strategy != "no" and not self.test_file:
            raise ValueError(f"`eval_strategy` is {self.eval_strategy!r} but there is no `test_file` to evaluate on.")
        self._check_loss()
        self._check_images()
        if self.fp16 and (self.use_cpu or not torch.cuda.is_available()):
            logger.warning("fp16 needs a GPU and none is in use: training in fp32.")
            self.fp16 = False
        if "WORLD_SIZE" not in os.environ:
            self.ddp_backend = None  # a single process; told a backend, transformers waits for others in vain
        # Pinning memory without a GPU does nothing but warn at every data loader.
        self.dataloader_pin_memory &= torch.cuda.is_available() and not self.use_cpu
        words = {"true": True, "false": False, "auto": "auto"}
        self.resume_from_checkpoint = words.get(str(self.resume_from_checkpoint).lower(), self.resume_from_checkpoint)
        if self.deepspeed and find_spec("deepspeed") is None:
            raise ValueError("`deepspeed` needs a package that is not installed: pip install deepspeed")
        super().__post_init__()
        self._check_parallel()
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process. Choose one with CUDA_VISIBLE_DEVICES=0, or use all of "
                f"them with: torchrun --nproc_per_node {self.n_gpu} train_clip.py …"
            )

    @property
    def group_size(self) -> int | None:
        """So many pairs go through the towers together; None: the whole batch."""
        on_cpu = self.device.type == "cpu" and not self.fsdp
        return self.contrastive_chunk_size or self.text_group_size or (CPU_TEXT_GROUP if on_cpu else None)

    @property
    def trainable_vision_blocks(self) -> int | None:
        """So many of the vision tower's last blocks are trained; None: all of the tower is."""
        if isinstance(self.freeze_vision, bool):
            return 0 if self.freeze_vision else None
        return int(self.freeze_vision.removeprefix("last_n_blocks:"))

    @property
    def images_change(self) -> bool:
        """The vision tower's output of a picture is not the same in every step."""
        return self.freeze_vision is not True or self.min_crop_area is not None or self.random_flip

    def _check_loss(self) -> None:
        if self.loss_type not in ("clip", "siglip"):
            raise ValueError(f"`loss_type` is {self.loss_type!r}; expected clip or siglip.")
        for key in ("contrastive_chunk_size", "text_group_size"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"`{key}` is {getattr(self, key)}; expected a number of pairs from 1, or null.")
        if self.contrastive_chunk_size and self.text_group_size:
            raise ValueError(
                "`contrastive_chunk_size` and `text_group_size` are both given, but the chunks are groups of like "
                "lengths already: leave text_group_size out."
            )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"`train_sampling_strategy` is {self.train_sampling_strategy!r}; expected random or sequential. Texts "
                "of like lengths are grouped inside of each random batch, see text_group_size."
            )

    def _check_parallel(self) -> None:
        if self.deepspeed and self.hf_deepspeed_config.is_zero3():
            raise ValueError("`deepspeed` has ZeRO stage 3, which is not supported: set stage to 2, or use fsdp.")
        if not self.fsdp:
            return
        for key in ("contrastive_chunk_size", "text_group_size"):
            if getattr(self, key):
                # Each chunk gathers the parameters: a process with fewer chunks would leave the others waiting.
                raise ValueError(
                    f"`{key}` does not go with `fsdp`: leave one of them out. What saves memory under fsdp is "
                    '"fsdp_config": {"activation_checkpointing": true}.'
                )
        if self.fsdp_plugin_args["fsdp_version"] != 2:
            raise ValueError("`fsdp_config` has version 1, which is not supported: leave `version` out.")
        if self.world_size == 1:
            raise ValueError(
                "`fsdp` parts the model between processes, but there is one. Start several, one per GPU: "
                "torchrun --nproc_per_node 8 train_clip.py …"
            )

    def _check_images(self) -> None:
        words = {"true": True, "1": True, "false": False, "0": False}
        self.freeze_vision = words.get(str(self.freeze_vision).lower(), self.freeze_vision)
        if not (
            isinstance(self.freeze_vision, bool) or re.fullmatch(r"last_n_blocks:[1-9]\d*", str(self.freeze_vision))
        ):
            raise ValueError(
                f"`freeze_vision` is {self.freeze_vision!r}; expected true, false, or last_n_blocks:k with k from 1."
            )
        if self.min_crop_area is not None and not 0 < self.min_crop_area < 1:
            raise ValueError(f"`min_crop_area` is {self.min_crop_area}; expected a share between 0 and 1, or null.")
        if self.images_change and self.image_feature_cache not in ("auto", "off"):
            raise ValueError(
                f"`image_feature_cache` is {self.image_feature_cache}, but features can only be kept where they are "
                "the same in every step. Set it to off, or train with freeze_vision true and without min_crop_area "
                "and random_flip."
            )
        if self.images_change:
            self.image_feature_cache = "off"
        elif self.image_feature_cache == "auto":
            self.image_feature_cache = os.path.join(
                os.path.dirname(os.path.abspath(self.output_dir)), "image_features"
            )

    def _help(self, key: str) -> str:
        return next(f.metadata["help"] for f in fields(self) if f.name == key)

    def _check_pair_files(self, key: str) -> None:
        paths = expand(getattr(self, key) or [])
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            files = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ValueError(f"`{key}`: there is no file {files} (seen from {os.getcwd()}).")
        if not self.image_path and not all(map(is_shard, paths)):
            raise ValueError(f"`image_path` is missing: {self._help('image_path')}")

    def _check_model_path(self, key: str) -> None:
        path = getattr(self, key)
        if path and not is_hub_name(path) and not os.path.isfile(os.path.join(path, "config.json")):
            raise ValueError(f"`{key}`: {path} is not a model folder (no config.json in it; seen from {os.getcwd()}).")


def load_arguments(path: str, overrides: Sequence[str] = ()) -> CLIPTrainingArguments:
    """Read one flat JSON of training arguments.

    Keys of the published recipe and of older transformers versions keep their meaning; `warmup_steps` wins over
    `warmup_ratio`.

    Args:
        path: JSON file.
        overrides: "key=value" items that replace keys of the file; a value is read as JSON where it is JSON.

    Raises:
        ValueError: no such file, not JSON, an unknown key, a value of the wrong type, a recipe that cannot run.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            given = json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold one JSON object of keys and values, not a {type(given).__name__}.")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected key=value.")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    known = {f.name for f in fields(CLIPTrainingArguments) if f.init}
    hints = typing.get_type_hints(CLIPTrainingArguments)
    given = _translate(given, known)
    return CLIPTrainingArguments(**{key: _as_type(key, value, hints[key]) for key, value in given.items()})


def _translate(given: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Replace the keys of older versions by today's, and refuse those that nobody knows."""
    today = {}
    for key, value in given.items():
        if key in known:
            today[key] = value
        elif key in RENAMED:
            today.setdefault(RENAMED[key], value)
        elif key in RETIRED:
            logger.warning("`%s` has no effect in this version of transformers; remove it.", key)
        elif key == "warmup_ratio":
            # transformers 5 reads a warmup_steps below 1 as a share of all steps.
            if not given.get("warmup_steps"):
                today["warmup_steps"] = value
        elif key == "adafactor":
            if _as_type(key, value, bool):
                today["optim"] = "adafactor"
        else:
            near = difflib.get_close_matches(key, [*known, *RENAMED, "warmup_ratio"], n=1)
            raise ValueError(f"Unknown argument `{key}`." + (f" Did you mean `{near[0]}`?" if near else ""))
    if not today.get("warmup_steps") and given.get("warmup_ratio"):
        today["warmup_steps"] = given["warmup_ratio"]
    return today


def _as_type(key: str, value: Any, hint: Any) -> Any:
    """Check a JSON value against the field's type; numbers and bools written as strings are read as such."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = set(typing.get_args(hint)) if is_union else {hint}
    types_of_values = options - {type(None)}
    if value is None:
        if type(None) in options:
            return None
    elif types_of_values <= {str, list[str]}:
        texts = value if isinstance(value, list) and list[str] in options else [value]
        if all(isinstance(text, str) for text in texts):
            return value
    elif not types_of_values <= {bool, int, float}:
        return value  # enums, lists and dicts: TrainingArguments checks them itself
    elif bool in types_of_values:
        word = str(value).lower()
        if word in ("true", "false", "1", "0"):
            return word in ("true", "1")
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if float in types_of_values and not math.isnan(number):
            return number
        if number.is_integer():
            return int(number)
    names = {
        str: "a string",
        list[str]: "a list of strings",
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        type(None): "null",
    }
    wanted = " or ".join(name for type_, name in names.items() if type_ in options)
    raise ValueError(f"`{key}` is {value!r}; expected {wanted}.")
