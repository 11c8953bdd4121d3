"""How many CPU cores this process may use."""

import os


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, in a container or a cluster job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
