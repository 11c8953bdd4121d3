"""Digests of weights, kept with the state of the files they were read from: hashing 190 M parameters takes a second.

They are kept in the cache folder of the Hub (HF_HOME), one small file per model folder, because a model folder may be
read-only and is not ours. Without room there, digests are computed each time.
"""

import hashlib
import json
import os
from contextlib import suppress

from huggingface_hub import constants, try_to_load_from_cache

from component.ground.file_state import FileState
from component.ground.files import write_json
from component.hub.model_path import is_hub_name

States = dict[str, list[int]]  # file name → FileState


def file_states(path: str) -> States:
    """States of all files in a model folder, or in the local copy of a hub name; empty if there is none."""
    if is_hub_name(path):
        config = try_to_load_from_cache(path, "config.json")
        path = os.path.dirname(config) if isinstance(config, str) else ""
    if not os.path.isdir(path):
        return {}
    return {entry.name: list(FileState.of(entry.path)) for entry in os.scandir(path) if entry.is_file()}


def read_digests(path: str, states: States) -> tuple[str, str] | None:
    """Digests of the image half and of the text half that were kept for files in these states."""
    with suppress(OSError, ValueError, KeyError), open(_file(path), encoding="utf-8") as file:
        kept = json.load(file)
        if states and kept["states"] == states:
            return kept["image"], kept["text"]
    return None


def keep_digests(path: str, states: States, image: str, text: str) -> None:
    """Keep digests for `read_digests`."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(_file(path)), exist_ok=True)
        write_json(_file(path), {"states": states, "image": image, "text": text})


def _file(path: str) -> str:
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=16).hexdigest()
    return os.path.join(constants.HF_HOME, "clip-chinese", f"{name}.json")
