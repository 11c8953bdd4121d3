"""The identity of a model, kept with the state of the files it was loaded from: hashing 190 M weights takes a second.

It is kept in the cache folder of the Hub (HF_HOME), one small file per model folder, because a model folder may be
read-only and is not ours. Without room there, it is computed each time.
"""

import hashlib
import json
import os
from contextlib import suppress

from huggingface_hub import constants

from component.ground.file_state import FileState
from component.ground.files import write_json
from component.hub.identity import ModelIdentity
from component.hub.model_path import is_hub_name

States = dict[str, list[int]]  # file name → FileState


def local_folder(path: str) -> str | None:
    """The model folder itself, or the local copy of a hub name; None if there is none."""
    if is_hub_name(path):
        from huggingface_hub import try_to_load_from_cache  # takes a third of a second

        config = try_to_load_from_cache(path, "config.json")
        path = os.path.dirname(config) if isinstance(config, str) else ""
    return path if os.path.isdir(path) else None


def file_states(path: str) -> States:
    """States of all files in the local folder of a model; empty if there is none."""
    folder = local_folder(path)
    if folder is None:
        return {}
    return {entry.name: list(FileState.of(entry.path)) for entry in os.scandir(folder) if entry.is_file()}


def read_identity(path: str, states: States) -> ModelIdentity | None:
    """The identity that was kept for files in these states."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(_file(path), encoding="utf-8") as file:
        kept = json.load(file)
        if states and kept["states"] == states:
            return ModelIdentity.from_dict(kept["identity"])
    return None


def keep_identity(path: str, states: States, identity: ModelIdentity) -> None:
    """Keep an identity for `read_identity`."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(_file(path)), exist_ok=True)
        write_json(_file(path), {"states": states, "identity": identity.to_dict()})


def _file(path: str) -> str:
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=16).hexdigest()
    return os.path.join(constants.HF_HOME, "clip-chinese", f"{name}.json")
