"""Checkpoints that a run can go on from: written whole or not at all, checked, and found again."""

import json
import logging
import os
import shutil
import zipfile
from typing import Any

import safetensors
from accelerate.utils import broadcast_object_list

from component.files import replace_folder, write_json

logger = logging.getLogger(__name__)

# Folder in output_dir for what is being written or removed. By its first letters, transformers takes it neither for a
# checkpoint nor for something to upload.
UNFINISHED = "_unfinished"
RECORD = "resume.json"  # in a checkpoint: its files and their sizes, and what the Trainer's own files do not tell


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, checked; None: start anew.

    The first process chooses for all: a network file system may show a new folder to some before others.

    Args:
        args: `CLIPTrainingArguments`. resume_from_checkpoint is a folder; or True, for the last whole checkpoint in
            output_dir; or "auto", for the same if there is one; or None or False.

    Raises:
        ValueError: there is none, it is damaged, or it was trained with another global batch.
    """
    choice: list[Any] = [None]
    if args.process_index == 0:
        try:
            choice[0] = _find(args.resume_from_checkpoint, args.output_dir)
            if choice[0]:
                _require_same_global_batch(choice[0], args)
                logger.info("resuming from %s", choice[0])
        except ValueError as error:
            choice[0] = error
    broadcast_object_list(choice)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    return choice[0]


def _find(resume: str | bool | None, output_dir: str) -> str | None:
    if not resume:
        return None
    if resume not in (True, "auto"):
        require_whole(resume)
        return resume
    for path in reversed(checkpoints(output_dir)):
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


def checkpoints(output_dir: str) -> list[str]:
    """The folders checkpoint-<step> in a folder, by step."""
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = sorted(int(step) for name in names if (step := name.removeprefix("checkpoint-")).isdecimal())
    return [os.path.join(output_dir, f"checkpoint-{step}") for step in steps]


def require_whole(path: str) -> None:
    """Raise ValueError, with folder, file and reason, where a checkpoint is not one to go on from.

    Looks at sizes, and at what each format says of its own length: milliseconds, whatever the weights' size. (Reading
    a gigabyte to compare a digest would find flipped bits too, and take seconds at every save.)
    """
    if not os.path.isfile(os.path.join(path, "trainer_state.json")):
        raise ValueError(
            f"{path} is not a checkpoint to resume from: it has no trainer_state.json. (To start from the model "
            "alone, such as that of checkpoint-final, set load_from_bert_clip and clip_pretrain_path.)"
        )
    files = _files(path)
    for name, size in read_record(path).get("files", {}).items():
        if files.get(name) != size:
            found = f"has {files[name]} bytes instead of {size}" if name in files else "is missing"
            raise ValueError(f"{path} is damaged: {name} {found}.")
    for name in files:
        try:
            _read_outline(os.path.join(path, name))
        except (OSError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} is damaged: {name} cannot be read ({error}).") from None
    if not any(name.startswith("rng_state") for name in files):
        raise ValueError(f"{path} holds a model, but no optimizer and RNG states: save_only_model was set.")


def _read_outline(path: str) -> None:
    """Open a file as far as it takes to see that its end is there."""
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            json.load(file)
    elif path.endswith(".safetensors"):
        safetensors.safe_open(path, "np").keys()
    elif path.endswith((".pt", ".pth", ".bin")):  # torch.save
        zipfile.ZipFile(path).close()


def _files(path: str) -> dict[str, int]:
    """Relative name → size of every file under a folder."""
    found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {os.path.relpath(file, path): os.path.getsize(file) for file in sorted(found)}


def read_record(path: str) -> dict[str, Any]:
    """What `finish` noted in a checkpoint; nothing for one that an older version wrote.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        with open(os.path.join(path, RECORD), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {RECORD} cannot be read ({error}).") from None


def _batch(args) -> dict[str, int]:
    keys = ("world_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    return {key: getattr(args, key) for key in keys}


def _require_same_global_batch(path: str, args) -> None:
    now, before = _batch(args), read_record(path).get("batch")
    if before in (None, now):
        return

    def product(batch: dict[str, int]) -> int:
        return batch["world_size"] * batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"]

    def describe(batch: dict[str, int]) -> str:
        processes, pairs, steps = batch.values()
        return f"world_size {processes} × per_device_train_batch_size {pairs} × gradient_accumulation_steps {steps}"

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


def remove_unfinished(output_dir: str) -> None:
    """Clear away what was being written or removed, by a killed run too."""
    shutil.rmtree(os.path.join(output_dir, UNFINISHED), ignore_errors=True)


def finish(name: str, args, extra_state: dict[str, Any]) -> None:
    """Give the checkpoint that is complete in UNFINISHED its place in output_dir."""
    new = os.path.join(args.output_dir, UNFINISHED, name)
    write_json(os.path.join(new, RECORD), {"files": _files(new), "batch": _batch(args), "extra_state": extra_state})
    replace_folder(new, os.path.join(args.output_dir, name))


def remove_oldest(output_dir: str, limit: int | None, keep: set[str]) -> None:
    """Move the checkpoints that were saved first to UNFINISHED, until `limit` (None, 0: no limit) are left.

    The Trainer's own rotation counts checkpoint-final too, and removes it.

    Args:
        keep: names of checkpoints that stay.
    """
    if not limit:
        return
    # Not by step: a run that was started anew beside old checkpoints of a longer one keeps its own.
    saved = sorted(checkpoints(output_dir), key=os.path.getmtime)
    surplus = len(saved) - limit
    for path in [path for path in saved if os.path.basename(path) not in keep][: max(surplus, 0)]:
        # At once: killed in the middle of removing, a run leaves no half of it.
        os.renames(path, os.path.join(output_dir, UNFINISHED, os.path.basename(path)))
