"""Optional packages, imported when they are needed."""

import importlib
from types import ModuleType


def import_optional(module: str, user: str, extra: str = "extras") -> ModuleType:
    """Import a module of an optional package.

    Args:
        user: what needs it, for the message, such as "Parquet".
        extra: name of the requirements file that lists it.

    Raises:
        ModuleNotFoundError: the package is missing; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{user} needs {package}: pip install {package}, or pip install -r requirements-{extra}.txt ({error})"
        ) from None
