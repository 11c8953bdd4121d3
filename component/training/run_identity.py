"""A run: one training from its start to its end, over however many interruptions, with one recipe on the same data."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from component.ground.file_state import FileState
from component.ground.files import write_json
from component.ground.remote import for_each
from component.pairs.file_content import content_of
from component.pairs.known_files import contents_of, states_of
from component.pairs.table_files import file_and_split, pair_files
from component.pairs.templates import read_templates, templates_identity
from component.training.first_process import on_first_process
from component.training.image_vectors import open_vectors
from component.training.sampler import ORDER
from component.training.shared_work import SharedWork

logger = logging.getLogger(__name__)

RUN = "run.json"  # in output_dir
TABLES = ("train_file", "test_file", "keep_list")
# Keys of TrainingArguments that shape the optimisation. The batch is compared elsewhere, because it may be split
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
# Keys of our own that may change during a run: where files are, how memory is saved, when to stop.
HARMLESS = {
    "test_file",
    "image_path",
    "image_feature_cache",
    "text_feature_cache",
    "distill_cache",
    "pair_table",
    "verify_image_features",
    "contrastive_chunk_size",
    "text_group_size",
    "early_stopping_patience",
    "overwrite_output_dir",
    "check_data",
    "model_license",
}
SAME_OPTIMIZER = ("adamw_torch", "adamw_torch_fused")  # many kernels, or one
LENGTH = ("num_train_epochs", "max_steps")
CONSTANT = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Run:
    """What a checkpoint belongs to.

    Attributes:
        id: None for a run that an older version began.
        recipe: key → value of everything that shapes the optimisation.
        tables: "train_file", "test_file" and "keep_list" → (state of the files, identity of their content), see
            `table_identity`.
        start: identity of the model that training started from, and of the teacher, if there is one, as JSON; None if
            an older version began the run.
        finished: step at which the run ended by itself; None before that.
    """

    id: str | None
    recipe: dict[str, Any]
    tables: dict[str, tuple[str, str]] = field(default_factory=dict)
    start: dict[str, Any] | None = None
    finished: int | None = None

    to_dict = asdict


def run_of(args, before: Run | None = None, start: dict[str, Any] | None = None) -> Run:
    """The run that these arguments describe, with a new id.

    Args:
        before: a run whose tables need not be read again if their files have not changed since.
    """
    known = before.tables if before else {}
    given = {key: getattr(args, key) for key in TABLES if getattr(args, key)}
    tables = {key: table_identity(files, known.get(key)) for key, files in given.items()}
    identities = {key: identity for key, (_, identity) in tables.items() if key != "test_file"}
    return Run(secrets.token_hex(6), _recipe_of(args, identities), tables, start)


def read_run(output_dir: str) -> Run | None:
    """The run that output_dir belongs to; None if no run has begun there, or its file cannot be read."""
    try:
        with open(os.path.join(output_dir, RUN), encoding="utf-8") as file:
            return run_from(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, TypeError, ValueError) as error:
        logger.warning("%s cannot be read (%s).", os.path.join(output_dir, RUN), error)
        return None


def run_from(content: dict[str, Any]) -> Run:
    """A run from what `Run.to_dict` gave, in this version or another. Raises TypeError if id or recipe is missing."""
    known = {f.name for f in fields(Run)}
    return Run(**{key: value for key, value in content.items() if key in known})


def write_run(run: Run, output_dir: str) -> None:
    os.makedirs(output_dir, exist_ok=True)
    write_json(os.path.join(output_dir, RUN), run.to_dict())


def mark_finished(args, step: int) -> None:
    """Record in output_dir that its run has ended by itself at this step."""
    if args.should_save and (run := read_run(args.output_dir)):
        write_run(replace(run, finished=step), args.output_dir)


def table_identity(files: str | list[str], known: Sequence[str] | None = None) -> tuple[str, str]:
    """The state of a table's files, and the identity of their content: names, sizes and a digest.

    The folder is not part of the identity, because data may move.

    Args:
        known: an earlier result, whose digest is used again if the files are in the same state.
    """
    names = pair_files(files)
    states, state = _state_of(names)
    if known and known[0] == state:
        return state, known[1]
    base = list(map(os.path.basename, names))
    contents = [content_of(name, one) for name, one in states.items()]
    digest = hashlib.blake2b(json.dumps([base, contents]).encode(), digest_size=6).hexdigest()
    named = base[0] if len(base) == 1 else f"{len(base)} files, {base[0]} to {base[-1]}"
    return state, f"{named}, {sum(content.size for content in contents):,} bytes ({digest})"


def _state_of(names: list[str]) -> tuple[dict[str, FileState], str]:
    """The states of the files of some names, and a digest of them."""
    states = dict(zip(names, for_each(lambda name: FileState.of(file_and_split(name)[0]), names), strict=True))
    heading = [names, [states[name] for name in names]]
    return states, hashlib.blake2b(json.dumps(heading).encode(), digest_size=16).hexdigest()


def compare_tables(args) -> None:
    """Before a run is continued, find the contents of tables that are in another state than when it was begun, such as
    shards that were copied to the disk of each machine: with all processes, which must see the same."""
    given = {key: pair_files(getattr(args, key)) for key in TABLES if getattr(args, key)}

    def changed() -> list[str]:
        before = read_run(args.output_dir)
        known = {key: table[0] for key, table in before.tables.items()} if before else {}
        return [key for key, names in given.items() if before and _state_of(names)[1] != known.get(key)]

    for key in on_first_process(changed):
        contents_of(states_of(given[key]), None, SharedWork(args.dataloader_num_workers))


def _recipe_of(args, identities: dict[str, str]) -> dict[str, Any]:
    theirs = {f.name for f in fields(TrainingArguments)}
    ours = [f.name for f in fields(args) if f.name not in theirs | HARMLESS]
    recipe = {key: getattr(args, key) for key in (*ours, *SHAPING, *LENGTH)}
    recipe = {key: value.value if isinstance(value, Enum) else value for key, value in recipe.items()}
    recipe |= {**identities, "order": ORDER}
    if args.text_templates:
        recipe["text_templates"] = templates_identity(read_templates(args.text_templates))
    if args.image_vectors:
        recipe["image_vectors"] = open_vectors(args.image_vectors).identity
        if os.path.isfile(args.image_vector_ids or ""):
            recipe["image_vector_ids"] = content_of(args.image_vector_ids, FileState.of(args.image_vector_ids)).digest
    for key in ("clip_pretrain_path", "bert_pretrain_path", "distill_from"):
        if recipe[key]:  # the last two folders, because the whole project may move
            recipe[key] = "/".join(recipe[key].replace(os.sep, "/").split("/")[-2:])
    return json.loads(json.dumps(recipe))


def require_same_recipe(path: str, before: dict[str, Any], args, now: dict[str, Any]) -> None:
    """Compare the recipe of a checkpoint with that of the arguments.

    Users change the length of a run that was too short: a warning says what that does to the learning rate.

    Raises:
        ValueError: something else that shapes the optimisation has changed.
    """
    if "order" not in before and args.train_sampling_strategy == "random":
        logger.warning(
            "%s was written by an older version, which shuffled the pairs differently: the rest of this epoch follows "
            "the new order, so some pairs are repeated and as many are skipped. The next epochs are complete.",
            path,
        )
    if not before:
        logger.warning("%s was written by an older version: its recipe is unknown and cannot be compared.", path)
        return
    # A key that the older version did not have, had the effect of today's default.
    before = {f.name: f.default for f in fields(args) if f.name in now and f.name not in SHAPING} | before
    changed = {key: (before[key], value) for key, value in now.items() if key in before and before[key] != value}
    if all(optimizer in SAME_OPTIMIZER for optimizer in changed.get("optim", ())):
        changed.pop("optim", None)
    length = {key: changed.pop(key) for key in LENGTH if key in changed}
    if changed:
        raise ValueError(
            f"{path} was trained with another recipe: {_list(changed)}. Set these back to continue, or give the "
            "new recipe an output_dir of its own (or, to discard this run, set resume_from_checkpoint null and "
            "overwrite_output_dir true)."
        )
    if length and args.lr_scheduler_type not in CONSTANT:
        logger.warning(
            "the run now has another length: %s. The learning rate continues with the value that lr_scheduler_type %s "
            "gives this step of the new length, not with the value where the run stopped.",
            _list(length),
            now["lr_scheduler_type"],
        )


def _list(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{key} was {json.dumps(old, ensure_ascii=False)}, is {json.dumps(new, ensure_ascii=False)}"
        for key, (old, new) in changed.items()
    )
