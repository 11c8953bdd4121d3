"""Which checkpoint a run continues from, and whether it may."""

import json
import logging
import os
import shutil
from dataclasses import replace

from component.hub.identity import ModelIdentity, identity_of
from component.training.bad_images import LEFT_OUT
from component.training.best import figures_of
from component.training.checkpoint_files import (
    BATCH,
    DAMAGED,
    FINAL,
    batch_of,
    is_checkpoint,
    read_record,
    require_whole,
    run_id_of,
    run_of_record,
    saved_checkpoints,
)
from component.training.first_process import on_first_process
from component.training.results import CURVES, RESULTS, remove_results, write_arguments
from component.training.run_identity import RUN, Run, read_run, require_same_recipe, run_of, write_run

logger = logging.getLogger(__name__)

# What a run writes to output_dir in addition to its checkpoints.
LISTS = [LEFT_OUT.format(split) for split in ("train", "eval")]
WRITTEN = (*RESULTS, *CURVES, *LISTS, "trainer_state.json", "train_args.json", "versions.json", RUN)

UNKNOWN = {None, DAMAGED}


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint that `resume_from_checkpoint` stands for, checked; None to start from the beginning.

    The first process chooses for all, because on a network file system some may see a new folder later than others.
    With `auto_find_batch_size`, the batch size that was found is copied into the arguments.

    Args:
        args: `CLIPTrainingArguments`. resume_from_checkpoint is a folder; or True, the last whole checkpoint of the
            run in output_dir; or "auto", the same if there is one; or None or False.

    Raises:
        ValueError: there is no such checkpoint; it is damaged; it was trained with another recipe or global batch, or
            its best with another test set; or a new run would mix its checkpoints with those of another run, which
            `overwrite_output_dir` allows to remove.
    """

    def choose() -> tuple[str | None, dict[str, int]]:
        checkpoint = _find(args.resume_from_checkpoint, args.output_dir)
        _require_own_folder(checkpoint, args)
        if checkpoint is None:
            return None, {}
        batch = _require_continuable(checkpoint, args)
        logger.info("resuming from %s", checkpoint)
        return checkpoint, batch

    checkpoint, batch = on_first_process(choose)
    if batch and args.auto_find_batch_size:
        args.per_device_train_batch_size = batch["per_device_train_batch_size"]
    return checkpoint


def finished_step(args) -> int | None:
    """The step at which the run in output_dir ended by itself, if these arguments only ask for that run again.

    A finished run with a checkpoint at its end is resumed and takes no step. This is for runs that have no such
    checkpoint (save_strategy no, save_only_model): with resume_from_checkpoint auto they would train again.
    """

    def find() -> int | None:
        before = read_run(args.output_dir)
        if not (before and before.finished) or any(map(_is_whole, _checkpoints_of_run(args.output_dir))):
            return None
        return before.finished if run_of(args, before).recipe == before.recipe else None

    return on_first_process(find) if args.resume_from_checkpoint in (True, "auto") else None


def begin(args, checkpoint: str | None, model, processor, teacher: ModelIdentity | None = None) -> None:
    """Record the run that output_dir belongs to from now on, that of the checkpoint or a new one, and its arguments.

    Removes, and names, what `overwrite_output_dir` allows to remove for a new run.

    Args:
        model, processor: as loaded from clip_pretrain_path and bert_pretrain_path.
        teacher: of distill_from.

    Raises:
        ValueError: the checkpoint was started from another model, or learnt from another teacher.
        OSError: output_dir cannot be written.
    """

    def record() -> None:
        start, before = identity_of(model, processor), read_run(args.output_dir)
        if checkpoint:
            _require_same_start(checkpoint, start, teacher)
        run = run_of(args, before, {**start.to_dict(), **({"teacher": teacher.to_dict()} if teacher else {})})
        if checkpoint and _is_inside(checkpoint, args.output_dir):
            run = replace(run, id=run_id_of(checkpoint) or before and before.id)
        else:
            if args.overwrite_output_dir:
                _remove_runs(args.output_dir)
            remove_results(args, (*RESULTS, *CURVES, *LISTS))
        write_run(run, args.output_dir)
        write_arguments(args)

    on_first_process(record)


def _require_same_start(checkpoint: str, start: ModelIdentity, teacher: ModelIdentity | None) -> None:
    """The model folders of a resumed run must hold what the run started from: image features would be computed by a
    tower that is not the checkpoint's."""
    run = run_of_record(read_record(checkpoint))
    if not (run and run.start):
        return  # an older version wrote the checkpoint
    if differences := ModelIdentity.from_dict(run.start).differences(start):
        raise ValueError(
            f"{checkpoint} was started from another model than clip_pretrain_path and bert_pretrain_path hold now: "
            f"{'; '.join(differences)}. Put the former files back to continue, or give the new model an output_dir of "
            "its own."
        )
    if teacher and (differences := ModelIdentity.from_dict(run.start["teacher"]).differences(teacher)):
        raise ValueError(
            f"{checkpoint} learnt from another teacher than distill_from holds now: {'; '.join(differences)}. Put the "
            "former files back to continue, or give the new teacher an output_dir of its own."
        )


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
        'Set it to "auto" to start from the beginning in that case.'
    )


def _checkpoints_of_run(output_dir: str) -> list[str]:
    """The checkpoints of the run in run.json, by step, and those whose run is unknown because their record is missing
    or damaged. Without run.json, those of the only run."""
    id_of = {path: run_id_of(path) for path in saved_checkpoints(output_dir)}
    run, ids = read_run(output_dir), set(id_of.values()) - UNKNOWN
    if run is None and len(ids) > 1:
        raise ValueError(
            f"{output_dir} holds checkpoints of {len(ids)} runs, and no {RUN} that says which one to continue: set "
            "resume_from_checkpoint to the folder of a checkpoint."
        )
    ids = ids if run is None else {run.id}
    return [path for path, run_id in id_of.items() if run_id in ids | UNKNOWN]


def _require_own_folder(checkpoint: str | None, args) -> None:
    """A new run may not begin in a folder with checkpoints of another: it would mix with or overwrite them."""
    if args.overwrite_output_dir or (checkpoint and _is_inside(checkpoint, args.output_dir)):
        return
    others = saved_checkpoints(args.output_dir)
    is_auto = args.resume_from_checkpoint == "auto"
    if is_auto:  # a damaged checkpoint cannot be mistaken for one of the new run
        others = [path for path in others if _is_whole(path)]
    final = os.path.join(args.output_dir, FINAL)
    if is_checkpoint(final) and not (is_auto and _is_cut_short(args)):
        others.append(final)
    if others:
        raise ValueError(
            f"{args.output_dir} already contains a run ({os.path.basename(others[-1])}). To continue that run, set "
            "resume_from_checkpoint to auto, or to the folder of a checkpoint; for a new run, set another output_dir, "
            "or overwrite_output_dir to true, which removes that run."
        )


def _is_cut_short(args) -> bool:
    """Whether these arguments ask for the run in output_dir again, which ended between checkpoint-final and its
    results."""
    before = read_run(args.output_dir)
    return before is not None and not before.finished and run_of(args, before).recipe == before.recipe


def _require_continuable(checkpoint: str, args) -> dict[str, int]:
    """Compare a whole checkpoint with the arguments. Returns its batch, see `batch_of`."""
    record = read_record(checkpoint)
    before = run_of_record(record) or Run(None, {})
    now = run_of(args, before)
    _require_same_global_batch(checkpoint, record["batch"], args)
    require_same_recipe(checkpoint, before.recipe, args, now.recipe)
    _require_same_test_set(checkpoint, before, args, now)
    return record["batch"]


def _require_same_test_set(path: str, before: Run, args, now: Run) -> None:
    """Values of metric_for_best_model on different test sets cannot be compared."""
    uses_best = args.load_best_model_at_end or args.save_strategy == "best" or args.early_stopping_patience is not None
    tables = [run.tables.get("test_file", (None, None))[1] for run in (before, now)]
    if not uses_best or None in tables or tables[0] == tables[1]:
        return
    with open(os.path.join(path, "trainer_state.json"), encoding="utf-8") as file:
        log_history = json.load(file)["log_history"]
    if figures_of(args, log_history):
        raise ValueError(
            f"{path} measured {args.metric_for_best_model} on {tables[0]}, but test_file is now {tables[1]}: the best "
            "of both is unknown. Set test_file back, or leave out load_best_model_at_end, "
            "early_stopping_patience and save_strategy best, or set another output_dir."
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
    final = os.path.join(output_dir, FINAL)
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
            "%s was trained with %s and continues with %s: the same pairs in each step, but other dropout masks, and "
            "each pair is compared with %d pairs instead of %d.",
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
        f"{product(now)} ({describe(now)}), and would not continue where it stopped. "
        + (
            f"No per_device_train_batch_size makes it {product(before)} here; change the number of processes."
            if rest
            else f"Set per_device_train_batch_size to {size}."
        )
    )
