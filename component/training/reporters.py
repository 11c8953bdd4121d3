"""Callbacks that report a run to a terminal or a service: when one fails, the run continues."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from component.ground.plain_text import one_line

logger = logging.getLogger(__name__)


def let_fail(callback: TrainerCallback) -> None:
    """Turn the first exception of a reporter (wandb, TensorBoard, progress bar …) into a warning, ignore the others.

    Other callbacks stay as they are: training may depend on what they do.
    """
    is_reporter = isinstance(callback, (PrinterCallback, ProgressCallback)) or type(callback).__module__.startswith(
        "transformers.integrations."
    )
    if not is_reporter or hasattr(callback, "has_failed"):
        return
    callback.has_failed = False
    for event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
        setattr(callback, event, _surviving(callback, getattr(callback, event)))


def _surviving(callback: TrainerCallback, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except Exception as error:  # of whatever kind the service's package raises
            if not callback.has_failed:
                logger.warning(
                    "%s failed (%s: %s): training continues, and what it should have reported may be missing there.",
                    *(type(callback).__name__, type(error).__name__, one_line(error)),
                )
            callback.has_failed = True

    return call
