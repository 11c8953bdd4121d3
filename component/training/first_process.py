"""What only the first process does, and all continue with."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_first_process(function: Callable[[], T]) -> T:
    """Call a function on the first process, and return its result on all processes, which call this together.

    Raises:
        ValueError, OSError: of the function, on all processes, because the others would wait for the first one.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result
