"""Import large libraries without garbage collection, which takes a fifth of the time that torch and transformers need.

Imports create nearly a million objects that stay until the process ends, and each collection looks at all of them.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import inside this block; no later collection looks at what exists at its end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
