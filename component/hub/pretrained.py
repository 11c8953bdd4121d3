"""Find, check and load pretrained folders and Hub names. Faults are reported before anything is computed."""

import functools
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
import requests
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from component.hub.model_path import is_hub_name
from component.hub.quiet import quiet_transformers
from component.hub.tower_settings import settings_fault
from component.hub.use import Use

logger = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_SECONDS = 10
_WAYS_OUT = (
    "Give the path of a local folder with config.json, weights and vocab.txt or preprocessor_config.json; or set the "
    "environment variable HF_ENDPOINT to a mirror of the Hub."
)


def check_pretrained(path: str, use: Use) -> str:
    """Check files and config.json, which takes milliseconds, and return what to load from (`find_pretrained`).

    Raises:
        ValueError: there is no such folder or name, files are missing, it is another kind of model, or it has settings
            that transformers does not compute as the weights were trained.
    """
    source = find_pretrained(path)
    if os.path.isdir(source):
        _require_files(source)
    config = read_config(source)
    for kind in _kinds(config):
        if kind not in use.kinds:
            raise ValueError(f"{path} is not {use.name}: its model_type is {kind}. {use.instead}")
    for tower in use.towers:
        if fault := settings_fault(tower, config):
            raise ValueError(f"{path} is not {use.name}: {fault}. {use.instead}")
    return source


def load_pretrained(
    model_class: type[PreTrainedModel], path: str, use: Use, **options
) -> tuple[PreTrainedModel, set[str]]:
    """`from_pretrained` with checks: no required weight is random, unless `use` permits it and a warning is logged.

    Args:
        path: folder or Hub name.
        options: passed to `from_pretrained`.

    Returns:
        The model, and the names of its weights that are not from the folder.

    Raises:
        ValueError: as `check_pretrained`; or files are damaged, or weights are missing or have another shape.
    """
    source = check_pretrained(path, use)
    with loading(path):
        model, info = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    new = [name for name in missing if re.match(use.renewable, name)]
    faults = [f"{name} is missing" for name in missing if re.match(use.needed, name) and name not in new]
    for name, found, expected in misshapen:
        if re.match(use.needed, name):
            faults.append(f"{name} is {tuple(found)}, but {tuple(expected)} by config.json")
    if faults:
        raise ValueError(
            f"{path} is not {use.name}: {len(faults)} of its weights are missing or do not fit (the first: "
            f"{faults[0]}). {use.instead}"
        )
    if new:
        logger.warning("%s has no %s: initialised at random, to be trained.", path, " and ".join(new))
    unused = [name for name in sorted(info["unexpected_keys"]) if _is_of_tower(name, use.needed)]
    if unused:
        logger.warning("%s has %d weights that the model does not use (the first: %s).", path, len(unused), unused[0])
    return model, {*missing, *(name for name, *_ in misshapen)}


def find_pretrained(path: str) -> str:
    """What to load from: the folder, the Hub name, or the folder of an earlier download if the Hub is out of reach.

    Raises:
        ValueError: there is no such folder, or the Hub does not answer.
    """
    if is_hub_name(path):
        refusal = _refusal(path)
        if refusal is None:
            return path
        try:
            return huggingface_hub.snapshot_download(path, local_files_only=True)
        except Exception:  # never downloaded; each version of the library has another error for it
            where = f"is not a folder (seen from {os.getcwd()}), and the Hub ({huggingface_hub.constants.ENDPOINT})"
            raise ValueError(f"{path} {where} {refusal}. {_WAYS_OUT}") from None
    if not os.path.isdir(path):
        fault = "a file" if os.path.exists(path) else "missing; train_clip.py writes such folders"
        raise ValueError(f"{path} is not a model folder (seen from {os.getcwd()}): it is {fault}.")
    return path


def find_file(source: str, name: str) -> str | None:
    """Local path of one file of what `find_pretrained` returned, fetched if need be; None if there is no such file."""
    return cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


def _require_files(path: str) -> None:
    if not os.path.isfile(os.path.join(path, "config.json")):
        checkpoints = sorted(name for name in os.listdir(path) if name.startswith("checkpoint-"))
        hint = f" Did you mean {os.path.join(path, checkpoints[-1])}?" if checkpoints else ""
        if os.path.isfile(os.path.join(path, "adapter_config.json")):
            hint = " It is a LoRA adapter; train_clip.py saves the merged model in the folder above."
        raise ValueError(f"{path} is not a model folder: it has no config.json.{hint}")
    weights = [name for name in _WEIGHTS if os.path.isfile(os.path.join(path, name))]
    if not weights:
        raise ValueError(f"{path} has neither {' nor '.join(_WEIGHTS)}. Give a complete folder.")
    for name in weights:
        with open(os.path.join(path, name), "rb") as file:
            begin = file.read(20)
        if begin == b"version https://git-":
            raise ValueError(f"{path}/{name} is a Git LFS pointer, not the weights; fetch them: git lfs pull")
        if name.endswith(".bin") and not begin.startswith((b"PK", b"\x80")):  # torch.save's formats
            raise ValueError(f"{path}/{name} was not written by torch.save. Fetch the folder again.")


@functools.cache
def _refusal(name: str) -> str | None:
    """Why the Hub does not serve this model. None if it does, or if its own error says why not.

    The Hub is asked once for one small file, because huggingface_hub tries six times per file and logs each try.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "is not asked, because HF_HUB_OFFLINE is set"
    try:
        url, headers = huggingface_hub.hf_hub_url(name, "config.json"), huggingface_hub.utils.build_hf_headers()
        answer = requests.head(url, headers=headers, timeout=_HUB_SECONDS, allow_redirects=True)
    except huggingface_hub.errors.HFValidationError:
        return None  # not a name of the Hub; `read_config` reports it
    except ValueError:
        return "is not an address, which begins with https://"
    except requests.RequestException as error:
        return f"does not answer ({type(error).__name__})"
    signs = ("X-Repo-Commit", "X-Error-Code")
    if any(sign in response.headers for response in (*answer.history, answer) for sign in signs):
        return None
    if answer.status_code in (401, 404):
        return f"has no such model, or it is private (status {answer.status_code})"
    return f"does not serve it (status {answer.status_code})"


def read_config(path: str) -> dict:
    """The content of the config.json of a folder or Hub name. Raises ValueError if it is missing or not an object."""
    if not os.path.isdir(path):
        try:
            with quiet_transformers():
                return PretrainedConfig.get_config_dict(path)[0]
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            where = f"is neither a folder (seen from {os.getcwd()}) nor a model of the Hub"
            raise ValueError(f"{path} {where}: {reason}.") from error
    file = os.path.join(path, "config.json")
    try:
        with open(file, encoding="utf-8") as content:
            config = json.load(content)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}). Give a complete model folder.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, not one JSON object. Give a complete model folder.")
    return config


def _kinds(config: dict) -> Iterator[str]:
    """The model_types in a config: its own, and those of the classes in `architectures`."""
    if config.get("model_type"):
        yield config["model_type"]
    for name in config.get("architectures") or ():
        model_class = getattr(transformers, name, None)
        if model_class is not None:
            yield model_class.config_class.model_type


def _is_of_tower(name: str, needed: str) -> bool:
    # Heads are not needed, and buffers of older versions are computed.
    without_prefix = name.removeprefix("bert.")
    return re.match(needed, without_prefix) is not None and not name.endswith(("position_ids", "token_type_ids"))


@contextmanager
def loading(path: str) -> Iterator[None]:
    """Context of a `from_pretrained`: any error becomes a ValueError of one line, and there are no progress bars."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # a damaged file: OSError, RuntimeError, SafetensorError, UnpicklingError, …
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        mend = _WAYS_OUT if is_hub_name(path) else "Is it whole? Fetch it again."
        raise ValueError(f"{path} cannot be loaded: {reason.rstrip('.')}. {mend}") from error
