"""A run: one training from its start to its end, over however many interruptions, with one recipe on the same data."""

import hashlib
import json
import logging
import os
import secrets
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from component.ground.files import write_json
from component.pairs.sources import expand, is_shard
from component.training.sampler import ORDER

logger = logging.getLogger(__name__)

RUN = "run.json"  # in output_dir
# What shapes the optimisation, beside the keys of our own. The batch is compared elsewhere, as it may be dealt out
# differently.
SHAPING = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "optim_target_modules",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "fp16",
    "bf16",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
)
# Of our own keys, those that may change: where things lie, how memory is saved.
HARMLESS = {
    "test_file",
    "image_path",
    "image_feature_cache",
    "pair_table",
    "verify_image_features",
    "contrastive_chunk_size",
    "text_group_size",
    "early_stopping_patience",
    "overwrite_output_dir",
    "check_data",
    "model_license",
}
SAME_OPTIMIZER = ("adamw_torch", "adamw_torch_fused")  # in many kernels, and in one
LENGTH = ("num_train_epochs", "max_steps")
CONSTANT = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Run:
    """Who a checkpoint belongs to.

    Attributes:
        id: None for a run that an older version began.
        recipe: key → value of all that shapes the optimisation.
    """

    id: str | None
    recipe: dict[str, Any]

    to_dict = asdict


def new_run(args) -> Run:
    return Run(secrets.token_hex(6), recipe_of(args))


def read_run(output_dir: str) -> Run | None:
    """The run that output_dir belongs to; None where none has begun, or its file cannot be read."""
    try:
        with open(os.path.join(output_dir, RUN), encoding="utf-8") as file:
            return Run(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        logger.warning("%s cannot be read (%s).", os.path.join(output_dir, RUN), error)
        return None


def write_run(run: Run, output_dir: str) -> None:
    os.makedirs(output_dir, exist_ok=True)
    write_json(os.path.join(output_dir, RUN), run.to_dict())


def recipe_of(args) -> dict[str, Any]:
    """Key → value, as JSON has them. Tables stand there by name and content, shards by name and size: data may
    move."""
    theirs = {f.name for f in fields(TrainingArguments)}
    ours = [f.name for f in fields(args) if f.name not in theirs | HARMLESS]
    recipe = {key: getattr(args, key) for key in (*ours, *SHAPING, *LENGTH)}
    recipe = {key: value.value if isinstance(value, Enum) else value for key, value in recipe.items()}
    recipe["train_file"] = _identity(args.train_file)
    recipe["order"] = ORDER
    for key in ("clip_pretrain_path", "bert_pretrain_path"):
        if recipe[key]:  # the whole project may move
            recipe[key] = "/".join(recipe[key].replace(os.sep, "/").split("/")[-2:])
    return json.loads(json.dumps(recipe))


def _identity(files: str | list[str]) -> str:
    paths = expand(files)
    sizes = [os.path.getsize(path) for path in paths]
    names = [os.path.basename(path) for path in paths]
    digest = hashlib.blake2b(json.dumps([names, sizes]).encode(), digest_size=6)
    for path in paths:
        if not is_shard(path):  # a table is read as a whole anyhow, and one that was shuffled has the same size
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    named = names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} to {names[-1]}"
    return f"{named}, {sum(sizes):,} bytes ({digest.hexdigest()})"


def require_same_recipe(path: str, before: dict[str, Any], args) -> None:
    """Compare the recipe of a checkpoint with that of the arguments.

    Another length is what users want when a run was too short: a warning says what it means for the learning rate.

    Raises:
        ValueError: something else changed that shapes the optimisation.
    """
    now = recipe_of(args)
    if "order" not in before and args.train_sampling_strategy == "random":
        logger.warning(
            "%s was written by an older version, which shuffled the pairs otherwise: the epoch goes on in the new "
            "order, in which some of its pairs come again and as many are left out. The next epochs are whole.",
            path,
        )
    if not before:
        logger.warning("%s was written by an older version: whether the recipe is the same cannot be told.", path)
        return
    # What an older version had no key for was as the key's default has it.
    before = {f.name: f.default for f in fields(args) if f.name in now and f.name not in SHAPING} | before
    changed = {key: (before[key], value) for key, value in now.items() if key in before and before[key] != value}
    if all(optimizer in SAME_OPTIMIZER for optimizer in changed.get("optim", ())):
        changed.pop("optim", None)
    length = {key: changed.pop(key) for key in LENGTH if key in changed}
    if changed:
        raise ValueError(
            f"{path} was trained with another recipe: {_list(changed)}. Set these back to go on, or give the "
            "new recipe an output_dir of its own (or, to throw this run away, resume_from_checkpoint null and "
            "overwrite_output_dir true)."
        )
    if length and args.lr_scheduler_type not in CONSTANT:
        logger.warning(
            "the run has another length now: %s. The learning rate goes on as lr_scheduler_type %s has it at this "
            "step of the new length, which is not where it stopped.",
            _list(length),
            now["lr_scheduler_type"],
        )


def _list(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{key} was {json.dumps(old, ensure_ascii=False)}, is {json.dumps(new, ensure_ascii=False)}"
        for key, (old, new) in changed.items()
    )
