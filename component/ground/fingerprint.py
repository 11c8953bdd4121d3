"""What tells one set of weights from another."""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def fingerprint(module: nn.Module, *settings: Any) -> str:
    """Digest of a module's weights and of settings beside them (anything that JSON can hold)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()
