"""Every path of a recipe, made absolute once, before anything looks at it."""

import os
from pathlib import Path

from component.hub.model_path import is_hub_name

PATHS = ("output_dir", "train_file", "test_file", "image_path")
PATHS_OR_WORDS = {
    "image_feature_cache": ("auto", "off"),
    "pair_table": ("auto", "off"),
    "resume_from_checkpoint": ("auto", "true", "false"),
}
MODELS = ("clip_pretrain_path", "bert_pretrain_path")  # or names on the hub
CONFIGS = ("deepspeed", "fsdp_config", "accelerator_config")  # files, or what would stand in them


def expand_paths(args) -> None:
    """Replace `~` and relative paths in all of these keys.

    Raises:
        ValueError: `~name` of a user that there is not.
    """
    for key in PATHS:
        value = getattr(args, key)
        if isinstance(value, list):
            setattr(args, key, [_absolute(key, path) for path in value])
        elif value:
            setattr(args, key, _absolute(key, value))
    for key, words in PATHS_OR_WORDS.items():
        value = getattr(args, key)
        if isinstance(value, str) and value.lower() not in words:
            setattr(args, key, _absolute(key, value))
    for key in MODELS:
        value = getattr(args, key)
        if value and not is_hub_name(value):
            setattr(args, key, _absolute(key, value))
    for key in CONFIGS:
        value = getattr(args, key)
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            setattr(args, key, _existing_file(key, value))


def _absolute(key: str, path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"`{key}` is {path}, but there is no such user; a name that begins with ~ needs ./ before it."
        )
    return str(Path(expanded).absolute())  # not abspath: `..` after a link leads elsewhere


def _existing_file(key: str, path: str) -> str:
    path = _absolute(key, path)
    if not os.path.isfile(path):
        raise ValueError(f"`{key}`: there is no file {path}.")
    return path
