"""How much of this machine is ours."""

import os


def usable_cores() -> int:
    """CPU cores that this process may use: a container or a job of a cluster may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
