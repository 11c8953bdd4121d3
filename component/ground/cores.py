"""How many CPU cores this process may use, and how its threads share them with other processes."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(root: str = "/") -> int:
    """CPU cores that this process may use: those of its affinity mask, and no more than the quota of its container.

    A container started with `--cpus=2` sees every core of its host, and torch would start a thread for each of them.

    Args:
        root: the folder below which `proc` and `sys` are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(_quotas(Path(root)), default=cores))))


def limit_threads() -> None:
    """Let torch compute with `usable_cores` threads at most, unless OMP_NUM_THREADS or MKL_NUM_THREADS is set."""
    import torch  # not at the top: the download needs the number of cores, but not torch

    if not os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def spin_briefly() -> None:
    """Let threads of torch that wait for each other sleep soon, unless the user says how they wait.

    GNU OpenMP reads this when torch is imported, so it must be called before. By default threads spin for milliseconds
    at the end of each operation: on a busy machine they take the core that the thread they wait for needs. Spins of
    `GOMP_SPINCOUNT` 1000 last microseconds; docs/PERFORMANCE.md has the figures.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group around this process may use; nothing where there is no limit or no cgroup."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = root / "sys/fs/cgroup" / (controllers and "cpu")
            group = mount / path.lstrip("/")
            # In a container, the path may be the host's; the container's own group is then at the mount.
            for folder in {mount, group, *group.parents}:
                if folder.is_relative_to(mount):
                    with suppress(OSError, ValueError, ZeroDivisionError):
                        yield _quota(folder, is_v1=bool(controllers))


def _quota(folder: Path, is_v1: bool) -> float:
    """Cores of one group. Raises OSError or ValueError ("max") where it has no limit."""
    if is_v1:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    else:
        quota, period = (folder / "cpu.max").read_text().split()
    if int(quota) < 0:
        raise ValueError("no limit")
    return int(quota) / int(period)
