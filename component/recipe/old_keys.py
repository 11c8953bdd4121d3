"""Keys of the published recipe that transformers calls otherwise today, and a hint for keys that it does not know."""

import difflib
import re
from typing import Any

from component.recipe.json_file import as_type

RENAMED = {"no_cuda": "use_cpu", "evaluation_strategy": "eval_strategy"}


def translate(given: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Replace keys of the published recipe by today's. Where both are given, today's key wins.

    Args:
        known: today's keys.

    Raises:
        ValueError: an unknown key; the message proposes the nearest known ones.
    """
    # transformers writes <HUB_TOKEN> into a recorded recipe in place of a token.
    today = {key: None if re.fullmatch(r"<[A-Z_]+_TOKEN>", str(value)) else value for key, value in given.items()}
    for old, new in RENAMED.items():
        if old in today:
            today = {new: today.pop(old), **today}
    _translate_warmup_ratio(today)
    for key in today:
        if key not in known:
            near = difflib.get_close_matches(key, [*known, *RENAMED, "warmup_ratio"], n=1, cutoff=0.7)
            near = near or sorted(one for one in known if f"_{key}" in one)[:3]  # epochs, batch_size, …
            hint = f"Did you mean `{'` or `'.join(near)}`?" if near else "Remove it."
            raise ValueError(f"Unknown argument `{key}`. {hint}")
    return today


def _translate_warmup_ratio(today: dict[str, Any]) -> None:
    """warmup_steps wins over warmup_ratio. transformers 5 reads a warmup_steps below 1 as a share of all steps."""
    ratio = as_type("warmup_ratio", today.pop("warmup_ratio", None), float | None)
    if not ratio:
        return
    if not 0 < ratio < 1:  # 1 would be one step
        raise ValueError(f"`warmup_ratio` is {ratio}; expected a share of all steps, from 0 to below 1.")
    if not as_type("warmup_steps", today.get("warmup_steps"), float | None):
        today["warmup_steps"] = ratio
