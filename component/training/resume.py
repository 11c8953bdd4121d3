"""Which checkpoint a run goes on from, and whether it may."""

import logging
import os
import shutil
from typing import Any

from accelerate.utils import broadcast_object_list

from component.training.checkpoint_files import (
    BATCH,
    DAMAGED,
    batch_of,
    is_checkpoint,
    read_record,
    require_whole,
    run_id_of,
    saved_checkpoints,
)
from component.training.results import CURVES, RESULTS, remove_results
from component.training.run_identity import RUN, Run, new_run, read_run, require_same_recipe, write_run

logger = logging.getLogger(__name__)

# What a run leaves in output_dir, beside its checkpoints.
WRITTEN = (*RESULTS, *CURVES, "trainer_state.json", "train_args.json", "versions.json", RUN)

UNKNOWN = {None, DAMAGED}


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, checked; None: start anew.

    The first process chooses for all: a network file system may show a new folder to some before others. With
    `auto_find_batch_size`, the batch that was found is taken over into the arguments.

    Args:
        args: `CLIPTrainingArguments`. resume_from_checkpoint is a folder; or True, for the last whole checkpoint of
            the run in output_dir; or "auto", for the same if there is one; or None or False.

    Raises:
        ValueError: there is none, or it is damaged, or it was trained with another recipe or global batch; or a new
            run would mix its checkpoints with those of another, which `overwrite_output_dir` allows to remove.
    """
    choice: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            choice[0] = _find(args.resume_from_checkpoint, args.output_dir)
            _require_own_folder(choice[0], args)
            if choice[0]:
                record = read_record(choice[0])
                choice[1] = record["batch"]
                _require_same_global_batch(choice[0], record["batch"], args)
                require_same_recipe(choice[0], record["run"].get("recipe", {}), args)
                logger.info("resuming from %s", choice[0])
        except ValueError as error:
            choice[0] = error
    broadcast_object_list(choice)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    if choice[1] and args.auto_find_batch_size:
        args.per_device_train_batch_size = choice[1]["per_device_train_batch_size"]
    return choice[0]


def begin(args, checkpoint: str | None) -> None:
    """Write down which run output_dir belongs to from now on: that of the checkpoint, or a new one.

    What `overwrite_output_dir` allows to remove for a new one is removed here, and named.
    """
    if args.process_index != 0:
        return
    run = new_run(args)
    if checkpoint and _is_inside(checkpoint, args.output_dir):
        before = read_run(args.output_dir)
        run = Run(run_id_of(checkpoint) or before and before.id, run.recipe)
    else:
        if args.overwrite_output_dir:
            _remove_runs(args.output_dir)
        remove_results(args, (*RESULTS, *CURVES))
    write_run(run, args.output_dir)


def _find(resume: str | bool | None, output_dir: str) -> str | None:
    if not resume:
        return None
    if resume not in (True, "auto"):
        require_whole(resume)
        return resume
    for path in reversed(_checkpoints_of_run(output_dir)):
        try:
            require_whole(path)
            return path
        except ValueError as error:
            logger.warning("skipped: %s", error)
    if resume == "auto":
        return None
    raise ValueError(
        f"`resume_from_checkpoint` is true, but there is no whole checkpoint in {output_dir}. "
        'Set it to "auto" to start anew in that case.'
    )


def _checkpoints_of_run(output_dir: str) -> list[str]:
    """By step; also those that lost their record, whose run nobody knows; without run.json those of the only run."""
    id_of = {path: run_id_of(path) for path in saved_checkpoints(output_dir)}
    run, ids = read_run(output_dir), set(id_of.values()) - UNKNOWN
    if run is None and len(ids) > 1:
        raise ValueError(
            f"{output_dir} holds checkpoints of {len(ids)} runs, and no {RUN} that says which is to go on: give the "
            "folder of one as resume_from_checkpoint."
        )
    ids = ids if run is None else {run.id}
    return [path for path, run_id in id_of.items() if run_id in ids | UNKNOWN]


def _require_own_folder(checkpoint: str | None, args) -> None:
    """Where a new run begins, no other may have left checkpoints that would be mixed with its own."""
    if args.overwrite_output_dir or (checkpoint and _is_inside(checkpoint, args.output_dir)):
        return
    others = saved_checkpoints(args.output_dir)
    if args.resume_from_checkpoint == "auto":  # what cannot be gone on from is none that could be taken for a new one
        others = [path for path in others if _is_whole(path)]
    if others:
        raise ValueError(
            f"{args.output_dir} holds checkpoints of another run ({os.path.basename(others[-1])} is the last). To go "
            "on with that run, set resume_from_checkpoint to auto, or to the folder of one; for a new run, give "
            "another output_dir, or set overwrite_output_dir to true, which removes that run."
        )


def _is_inside(checkpoint: str, output_dir: str) -> bool:
    return os.path.realpath(os.path.dirname(os.path.abspath(checkpoint))) == os.path.realpath(output_dir)


def _is_whole(path: str) -> bool:
    try:
        require_whole(path)
    except ValueError:
        return False
    return True


def _remove_runs(output_dir: str) -> None:
    final = os.path.join(output_dir, "checkpoint-final")
    folders = [*saved_checkpoints(output_dir), *([final] if is_checkpoint(final) else [])]
    files = [path for name in WRITTEN if os.path.isfile(path := os.path.join(output_dir, name))]
    if folders or files:
        names = ", ".join(map(os.path.basename, folders + files))
        logger.warning("overwrite_output_dir removes from %s: %s", output_dir, names)
    for path in folders:
        shutil.rmtree(path)
    for path in files:
        os.unlink(path)


def _require_same_global_batch(path: str, before: dict[str, int], args) -> None:
    now = batch_of(args, args.per_device_train_batch_size)
    if before and args.auto_find_batch_size:
        now["per_device_train_batch_size"] = before["per_device_train_batch_size"]
    if not before or before == now:
        return

    def product(batch: dict[str, int]) -> int:
        return batch["world_size"] * batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"]

    def describe(batch: dict[str, int]) -> str:
        return " × ".join(f"{key} {batch[key]}" for key in BATCH)

    if product(before) == product(now):
        logger.warning(
            "%s was trained with %s, and goes on with %s: the same pairs in each step, but other dropout draws, and "
            "each pair has %d pairs to compare with instead of %d.",
            path,
            describe(before),
            describe(now),
            now["world_size"] * now["per_device_train_batch_size"],
            before["world_size"] * before["per_device_train_batch_size"],
        )
        return
    size, rest = divmod(product(before), now["world_size"] * now["gradient_accumulation_steps"])
    raise ValueError(
        f"{path} was trained with a global batch of {product(before)} ({describe(before)}), but this run has one of "
        f"{product(now)} ({describe(now)}): it would not go on where it stopped. "
        + (
            f"No per_device_train_batch_size makes it {product(before)} here; change the number of processes."
            if rest
            else f"Set per_device_train_batch_size to {size}."
        )
    )
