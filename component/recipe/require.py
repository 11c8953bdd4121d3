"""What the checks of a recipe have in common."""

import math
from collections.abc import Callable, Collection
from typing import Any


def require_number(key: str, number: float, expected: str, is_valid: Callable[[float], bool]) -> None:
    """Raise ValueError unless a number is finite and valid."""
    if not (math.isfinite(number) and is_valid(number)):
        raise ValueError(f"`{key}` is {number}; expected {expected}.")


def require_known(key: str, value: Any, known: Collection[str]) -> None:
    """Raise ValueError unless a word, or the value of an enum, is among the known ones."""
    if getattr(value, "value", value) not in list(known):
        raise ValueError(f"`{key}` is {value!r}; expected one of {', '.join(known)}.")


def require_apart(args, key: str, *others: str, why: str = "") -> None:
    """Raise ValueError if one of the others is given, which do not work with `key`."""
    for other in others:
        if getattr(args, other):
            raise ValueError(f"`{key}` does not work with `{other}`{why}: leave one of them out.")


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
