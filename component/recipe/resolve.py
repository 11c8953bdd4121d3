"""Turns what a recipe says into what a run uses: absolute paths, lists, and defaults that depend on other keys.

The checks come afterwards and assign nothing.
"""

import logging
import os
import sys
from pathlib import Path

import torch

from component.ground.remote import is_remote
from component.hub.model_path import is_hub_name

logger = logging.getLogger(__name__)

PATHS = ("output_dir", "train_file", "test_file", "image_path", "image_vectors")
REMOTE = ("train_file", "test_file")  # which may be s3://… and the like
PATHS_OR_WORDS = {
    "image_feature_cache": ("auto", "off"),
    "text_feature_cache": ("auto", "off"),
    "distill_cache": ("auto", "off"),
    "pair_table": ("auto", "off"),
    "image_vector_ids": ("order",),
    "resume_from_checkpoint": ("auto", "true", "false"),
    "text_templates": (),  # a list contains templates, not paths
}
MODELS = ("clip_pretrain_path", "bert_pretrain_path", "distill_from")  # paths or hub names
CONFIGS = ("deepspeed", "fsdp_config", "accelerator_config")  # files, or their content


def resolve(args) -> None:
    """Resolve every key in place.

    Raises:
        ValueError: a path is empty, or begins with `~name`, but there is no such user; a path is not ASCII and the
            locale not UTF-8; a config file does not exist.
    """
    _resolve_paths(args)
    _resolve_words(args)
    _resolve_folders(args)
    for key in ("lora_targets", "report_to"):
        value = getattr(args, key)
        if isinstance(value, str):
            setattr(args, key, [value])
    args.report_to = args.report_to or ["none"]
    if args.greater_is_better is None and args.metric_for_best_model:  # transformers would maximise a rank
        args.greater_is_better = not args.metric_for_best_model.endswith(("loss", "rank"))
    if args.remove_unused_columns:
        logger.warning("`remove_unused_columns` has no effect, because every column of a batch is used; remove it.")
        args.remove_unused_columns = False
    has_gpu = torch.cuda.is_available() and not args.use_cpu
    if args.fp16 and not has_gpu:
        logger.warning("fp16 needs a GPU and none is in use: training in fp32.")
        args.fp16 = False
    args.dataloader_pin_memory &= has_gpu  # without a GPU it only makes every DataLoader warn
    if "WORLD_SIZE" not in os.environ:
        args.ddp_backend = None  # given a backend, transformers would make a single process wait for others


def _resolve_paths(args) -> None:
    for key in PATHS:
        value = getattr(args, key)
        if isinstance(value, list):
            setattr(args, key, [_absolute(key, path) for path in value])
        elif value:
            setattr(args, key, _absolute(key, value))
    for key, words in PATHS_OR_WORDS.items():
        value = getattr(args, key)
        if isinstance(value, str):
            setattr(args, key, value.lower() if value.lower() in words else _absolute(key, value))
    for key in MODELS:
        value = getattr(args, key)
        if value and not is_hub_name(value):
            setattr(args, key, _absolute(key, value))
    for key in CONFIGS:
        value = getattr(args, key)
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            setattr(args, key, _existing_file(key, value))


def _absolute(key: str, path: str) -> str:
    if not path.strip():  # it would be the current folder
        raise ValueError(f"`{key}` is empty: name a path, or leave it out.")
    if is_remote(path):
        if key not in REMOTE:
            raise ValueError(f"`{key}` is {path}, but only {' and '.join(REMOTE)} may be in a store.")
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"`{key}` is {path}, but there is no such user; write ./ before a name that begins with ~.")
    absolute = str(Path(expanded).absolute())  # not os.path.abspath: `..` after a symbolic link leads elsewhere
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not absolute.isascii():  # Python would find it, but safetensors takes paths as UTF-8
        raise ValueError(
            f"`{key}` is {absolute}, but the encoding of this locale is {encoding}, in which checkpoints cannot be "
            "saved there. Set the environment variable PYTHONUTF8=1 or LC_ALL=C.UTF-8, or use a path in ASCII."
        )
    return absolute


def _existing_file(key: str, path: str) -> str:
    path = _absolute(key, path)
    if not os.path.isfile(path):
        raise ValueError(f"`{key}`: there is no file {path}.")
    return path


def _resolve_words(args) -> None:
    words = {"true": True, "1": True, "false": False, "0": False}
    for key in ("freeze_vision", "resume_from_checkpoint"):
        value = getattr(args, key)
        setattr(args, key, words.get(str(value).lower(), value))


def _resolve_folders(args) -> None:
    if not args.output_dir:
        return
    parent = os.path.dirname(args.output_dir)
    if args.pair_table == "auto":
        args.pair_table = os.path.join(parent, "pair_tables")
    if args.image_feature_cache == "auto":
        args.image_feature_cache = (
            "off" if args.images_change or args.image_vectors else os.path.join(parent, "image_features")
        )
    if args.text_feature_cache == "auto":
        args.text_feature_cache = "off" if args.texts_change else os.path.join(parent, "text_features")
    if args.distill_cache == "auto":
        args.distill_cache = os.path.join(parent, "teacher_embeddings") if args.distill_from else "off"
