"""Whether all machines of a run see the folders that they have to share, found out before any work."""

import os
import platform
import time
from contextlib import suppress

from accelerate.utils import gather_object

from component.ground.files import hidden_sibling
from component.training.first_process import on_first_process

PATIENCE = 10  # seconds: a network file system may show a new file late
REMEDIES = {
    **dict.fromkeys(("image_feature_cache", "text_feature_cache", "pair_table"), ", or to off"),
    "distill_cache": "",
}


def require_shared_folders(args) -> None:
    """Raise ValueError if a process does not see a file that the first process writes; all call this together.

    A folder that the first process cannot write is left to its user, which says so.
    """
    folders = {key: getattr(args, key) for key in ("output_dir", *REMEDIES)}
    folders = {key: folder for key, folder in folders.items() if folder != "off"}
    probes = on_first_process(lambda: {key: _write_probe(folder) for key, folder in folders.items()})
    where = f"process {args.process_index} on {platform.node()}"
    blind = {key: [where] for key, probe in probes.items() if probe and not sees(probe)}
    found = gather_object([blind])  # all have looked
    if args.process_index == 0:
        for probe in filter(None, probes.values()):
            with suppress(OSError):
                os.unlink(probe)
    for key, folder in folders.items():
        if not_seeing := [name for one in found for name in one.get(key, ())]:
            raise ValueError(
                f"`{key}` {folder} is not on a disk that all machines share: {', '.join(not_seeing)} cannot see what "
                f"process 0 has written there. Set it to a folder on a shared disk{REMEDIES.get(key, '')}."
            )


def _write_probe(folder: str) -> str | None:
    try:
        os.makedirs(folder, exist_ok=True)
        path = hidden_sibling(os.path.join(folder, "shared"), f"{os.getpid()}-{time.time_ns()}.probe")
        with open(path, "x"):
            return path
    except OSError:
        return None


def sees(path: str) -> bool:
    """Whether this process sees a file that another has just written."""
    end = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > end:
            return False
        for folder in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path)):
            with suppress(OSError):
                os.listdir(folder)  # makes a network file system look again
        time.sleep(0.1)
    return True
