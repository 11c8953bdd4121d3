"""Where an export goes: a folder that appears whole or not at all, and takes the place of nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from component.ground.files import new_folder
from component.ground.lock import sole_writer


@contextmanager
def export_folder(model_path: str, output: str, overwrite: bool | None = None) -> Iterator[str]:
    """The path of an empty folder that gets the name `output` when the block ends, or is removed when it fails.

    Args:
        overwrite: also where `output` holds files: those of the same name are replaced, others stay. None: no, and
            there is no option for it that the error could name.

    Raises:
        ValueError: `output` is not empty, no place for a new folder, or being written by another run.
    """
    output = os.path.realpath(output)
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"{output} is a file; a folder is needed.")
    if output == os.path.realpath(model_path):
        raise ValueError(f"{output} is the model itself; give another folder.")
    if os.path.ismount(output):
        raise ValueError(f"{output} is a mount point, which no new folder can replace. Give a folder inside it.")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with sole_writer(output):
        if os.path.isdir(output) and os.listdir(output) and not overwrite:
            instead = "" if overwrite is None else ", or write into it with --overwrite"
            raise ValueError(f"{output} is not empty. Choose another folder{instead}.")
        with new_folder(output) as folder:
            yield folder
            if os.path.isdir(output):
                shutil.copytree(output, folder, symlinks=True, copy_function=_keep, dirs_exist_ok=True)


def _keep(old: str, new: str) -> None:
    """Another file of a folder that is replaced: it moves along, without being copied where that is possible."""
    if os.path.lexists(new):
        return
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
