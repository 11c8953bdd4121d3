"""Which weights a model was trained from. Trained apart, weights of one shape are no two ends of anything: between
them lies nothing that works (linear mode connectivity, arXiv:1912.05671)."""

import copy
import json
import os
from collections.abc import Sequence

import torch
from transformers.utils import cached_file

from component.ground.files import write_json
from component.ground.fingerprint import fingerprint
from component.hub.pretrained import find_pretrained
from component.model import BertCLIPModel

ANCESTORS = "ancestors.json"  # beside the weights


def read_ancestors(path: str) -> list[str] | None:
    """Digests of the weights that those of a folder or hub name were trained from, the oldest first.

    An empty list is a CLIP and a BERT, paired anew; None: nobody wrote it down.

    Raises:
        ValueError: the file is damaged.
    """
    quietly = dict(_raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    file = cached_file(find_pretrained(path), ANCESTORS, **quietly)
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as content:
            digests = json.load(content)
        if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
            raise ValueError("no list of digests")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}): fetch it again, or remove it.") from None
    return digests


def write_ancestors(folder: str, digests: Sequence[str] | None) -> None:
    """Write them beside the weights; nothing where nobody knows them."""
    if digests is not None:
        write_json(os.path.join(folder, ANCESTORS), list(digests))


def digest_of(model: BertCLIPModel) -> str:
    """What the weights are called among the ancestors: the same in whatever precision they are loaded, and exactly."""
    return fingerprint(model if model.dtype == torch.float32 else copy.deepcopy(model).float())
