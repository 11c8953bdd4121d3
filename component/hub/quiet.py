"""transformers and huggingface_hub without their progress bars and tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars, the table of missing weights, and the lines of repeated downloads.

    The caller reports in one line what is wrong.
    """
    with _only_errors(transformers_logging), _only_errors(hub_logging), no_progress_bars():
        yield


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' bars "Loading weights" and "Writing model shards", which are gone in a second."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def _only_errors(library: ModuleType) -> Iterator[None]:
    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
