"""Checkpoints on disk: written atomically, checked before they are read, the oldest removed."""

import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safetensors

from component.ground.files import full_disk, replace_folder, write_json
from component.training.run_identity import Run, run_from

logger = logging.getLogger(__name__)

# Folder in output_dir for what is being written or removed. The underscore keeps transformers from taking it for a
# checkpoint or uploading it.
UNFINISHED = "_unfinished"
# In a checkpoint: sizes and checksums of its files, its run, and what the Trainer's own files do not hold.
RECORD = "resume.json"
BATCH = ("world_size", "per_device_train_batch_size", "gradient_accumulation_steps")
DAMAGED = "damaged"
FINAL = "checkpoint-final"
TORCH_ENDINGS = (".pt", ".pth", ".bin")  # zip files of torch.save, which have checksums of their own


def saved_checkpoints(output_dir: str) -> list[str]:
    """The checkpoints `checkpoint-<step>` in a folder, by step."""
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = sorted(int(step) for name in names if (step := name.removeprefix("checkpoint-")).isdecimal())
    paths = [os.path.join(output_dir, f"checkpoint-{step}") for step in steps]
    return [path for path in paths if is_checkpoint(path)]


def is_checkpoint(path: str) -> bool:
    """Whether a Trainer wrote the folder, however damaged it is; a user may have given another one such a name."""
    return any(os.path.exists(os.path.join(path, name)) for name in ("trainer_state.json", "config.json", RECORD))


def batch_of(args, per_device_train_batch_size: int) -> dict[str, int]:
    return {
        "world_size": args.world_size,
        "per_device_train_batch_size": per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }


def run_id_of(path: str) -> str | None:
    """The id of a checkpoint's run; None if an older version wrote it, DAMAGED if its record cannot be read."""
    try:
        return read_record(path)["run"].get("id")
    except ValueError:
        return DAMAGED


# ---- checking ----


def require_whole(path: str) -> None:
    """Raise ValueError, with folder, file and reason, if a run cannot be resumed from a checkpoint.

    Reads the whole checkpoint and compares checksums: about 0.8 s per GB, once per resume.
    """
    if not os.path.isfile(os.path.join(path, "trainer_state.json")):
        raise ValueError(
            f"{path} is not a checkpoint to resume from: it has no trainer_state.json. (To start from the model "
            "alone, such as that of checkpoint-final, set load_from_bert_clip and clip_pretrain_path.)"
        )
    files, record = _files(path), read_record(path)
    for name, size in record["files"].items():
        if files.get(name) != size:
            found = f"has {files[name]} bytes instead of {size}" if name in files else "is missing"
            raise ValueError(f"{path} is damaged: {name} {found}.")
    for name in files:
        try:
            _read(os.path.join(path, name))
            if name in record["checksums"] and _checksum(os.path.join(path, name)) != record["checksums"][name]:
                raise ValueError("its content is not what was written")
        except Exception as error:  # each library raises a class of its own for each kind of damage
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path} is damaged: {name} cannot be read ({reason}).") from None
    if not any(name.startswith("rng_state") for name in files):
        raise ValueError(f"{path} holds a model, but no optimizer and RNG states: save_only_model was set.")


def _read(path: str) -> None:
    """Raise an error if the file does not hold what its name says."""
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if os.path.basename(path) == "trainer_state.json":
            _require_state(content, os.path.basename(os.path.dirname(path)))
    elif path.endswith(".safetensors"):
        safetensors.safe_open(path, "np").keys()
    elif path.endswith(TORCH_ENDINGS):
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"{damaged} in it has another checksum")


def _require_state(state: Any, folder: str) -> None:
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int) or step < 1 or not isinstance(state.get("log_history"), list):
        raise ValueError("it is not the state of a Trainer")
    if folder.startswith("checkpoint-") and folder != f"checkpoint-{step}":
        raise ValueError(f"it is of step {step}")


def read_record(path: str) -> dict[str, Any]:
    """What `complete_checkpoint` recorded, with all entries of the right type; empty entries for an older version.

    Raises:
        ValueError: the record is damaged.
    """
    record: dict[str, Any] = {"files": {}, "checksums": {}, "batch": {}, "run": {}, "extra_state": {}}
    try:
        with open(os.path.join(path, RECORD), encoding="utf-8") as file:
            found = json.load(file)
        record |= {key: value for key, value in found.items() if key in record}
        if not all(isinstance(value, dict) for value in record.values()):
            raise ValueError("an entry has the wrong type")
        counts = [value for key in ("files", "checksums", "batch") for value in record[key].values()]
        if not all(isinstance(count, int) for count in counts):
            raise ValueError("a number has the wrong type")
        if record["batch"] and set(record["batch"]) != set(BATCH):
            raise ValueError("the batch has other keys")
        if not isinstance(record["run"].get("recipe", {}), dict):
            raise ValueError("the recipe has the wrong type")
    except FileNotFoundError:
        pass
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {RECORD} cannot be read ({error}).") from None
    return record


def run_of_record(record: dict[str, Any]) -> Run | None:
    """The run of a checkpoint; None if an older version wrote it."""
    return run_from({"id": None, "recipe": {}, **record["run"]}) if record["run"] else None


# ---- writing ----


def complete_checkpoint(
    name: str, output_dir: str, batch: dict[str, int], run: Run | None, extra_state: dict[str, Any]
) -> None:
    """Add the record to a checkpoint in UNFINISHED and move it to output_dir.

    Args:
        batch: see `batch_of`.
    """
    new = os.path.join(output_dir, UNFINISHED, name)
    files = _files(new)
    record = {
        "files": files,
        "checksums": {file: _checksum(os.path.join(new, file)) for file in files if not file.endswith(TORCH_ENDINGS)},
        "batch": batch,
        "run": run.to_dict() if run else {},
        "extra_state": extra_state,
    }
    write_json(os.path.join(new, RECORD), record)
    replace_folder(new, os.path.join(output_dir, name))


def _files(path: str) -> dict[str, int]:
    """Relative name → size of every file under a folder."""
    found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {os.path.relpath(file, path): os.path.getsize(file) for file in sorted(found)}


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def naming_full_disk(output_dir: str) -> Iterator[None]:
    """Around saving: if the disk is full, remove what was begun and raise one OSError, whichever library failed."""
    try:
        yield
    except Exception as error:
        reason = full_disk(error)
        if reason is None:
            raise
        remove_unfinished(output_dir)
        raise OSError(
            f"nothing more can be saved in {output_dir}: {reason}. The checkpoints in it are whole. Make room, and "
            "start again with resume_from_checkpoint auto."
        ) from error


# ---- removing ----


def remove_unfinished(output_dir: str) -> None:
    """Remove what was being written or removed, also by a run that was killed."""
    shutil.rmtree(os.path.join(output_dir, UNFINISHED), ignore_errors=True)


def remove_oldest(output_dir: str, limit: int | None, keep: set[str]) -> None:
    """Move the run's checkpoints with the lowest steps to UNFINISHED until `limit` are left (None, 0: no limit).

    The Trainer's own rotation also counts and removes checkpoint-final, and sorts by file times, which clocks can get
    wrong.

    Args:
        keep: names of checkpoints that stay. The run is theirs; checkpoints of other runs are not touched.
    """
    if not limit:
        return
    run_of = {path: run_id_of(path) for path in saved_checkpoints(output_dir)}
    ours = {run_id for path, run_id in run_of.items() if os.path.basename(path) in keep}
    saved = [path for path, run_id in run_of.items() if run_id in ours]
    surplus = len(saved) - limit
    for path in [path for path in saved if os.path.basename(path) not in keep][: max(surplus, 0)]:
        # Renamed first, so that a run killed while removing does not leave half a checkpoint.
        os.renames(path, os.path.join(output_dir, UNFINISHED, os.path.basename(path)))
