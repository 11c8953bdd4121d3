"""Packages that only some jobs need, imported when they are needed."""

import importlib
from types import ModuleType


def import_optional(module: str, user: str, extra: str = "extras") -> ModuleType:
    """Import a module of an optional package.

    Args:
        user: who needs it, for the message: "Parquet".
        extra: the requirements file that has it.

    Raises:
        ModuleNotFoundError: with the command that installs the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{user} needs {package}: pip install {package}, or pip install -r requirements-{extra}.txt ({error})"
        ) from None
