"""The output folder of an export: it appears complete or not at all, and never replaces files unasked."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from component.ground.files import new_folder
from component.ground.lock import sole_writer


@contextmanager
def export_folder(model_path: str, output: str, overwrite: bool | None = None) -> Iterator[str]:
    """Yield an empty folder that is renamed to `output` when the block ends, or removed when it fails.

    Args:
        overwrite: allow an `output` with files: files of the same name are replaced, others stay. None: no, and the
            error does not suggest --overwrite, because the script has no such option.

    Raises:
        ValueError: as `require_free`; or `output` is in use by another process.
    """
    output = os.path.realpath(output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with sole_writer(output):
        require_free(model_path, output, overwrite)
        with new_folder(output) as folder:
            yield folder
            if os.path.isdir(output):
                shutil.copytree(output, folder, symlinks=True, copy_function=_keep, dirs_exist_ok=True)


def require_free(model_path: str, output: str, overwrite: bool | None = None) -> None:
    """Raise ValueError if `output` is not empty, or cannot be a new folder. Arguments as of `export_folder`."""
    output = os.path.realpath(output)
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"{output} is a file. Give a folder.")
    if output == os.path.realpath(model_path):
        raise ValueError(f"{output} is the model itself. Give another folder.")
    if os.path.ismount(output):
        raise ValueError(f"{output} is a mount point, which cannot be replaced. Give a folder inside it.")
    if os.path.isdir(output) and os.listdir(output) and not overwrite:
        instead = "" if overwrite is None else ", or write into it with --overwrite"
        raise ValueError(f"{output} is not empty. Choose another folder{instead}.")


def _keep(old: str, new: str) -> None:
    """Link a file of the replaced folder into the new one, or copy it if the disk has no links. New files win."""
    if os.path.lexists(new):
        return
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
