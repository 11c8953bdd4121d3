"""Batches that DataLoader workers hand over through /dev/shm, which has 64 MB in a container by default."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import recursively_apply

logger = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"
REMEDY = "Give the container more (docker run --shm-size=8g, or --ipc=host), or set smaller batches"
PREFETCH_FACTOR = 2  # torch's default, in batches per worker
IN_USE = 2  # batches that the main process holds in addition: the current one and the next one


def worker_options(num_workers: int, batch_bytes: int, prefetch_factor: int | None = None) -> dict[str, int | None]:
    """`num_workers` and `prefetch_factor` of a DataLoader such that the batches under way fit into shared memory.

    If they do not fit, fewer batches are prefetched, then fewer workers started, and a warning says so.

    Args:
        batch_bytes: of the tensors of one batch.
    """
    if not num_workers or not os.path.isdir(SHARED_MEMORY):
        return {"num_workers": num_workers, "prefetch_factor": prefetch_factor}
    prefetch = prefetch_factor or PREFETCH_FACTOR
    free = shutil.disk_usage(SHARED_MEMORY).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    batches = free // max(batch_bytes, 1) - IN_USE
    if batches >= num_workers * prefetch:
        return {"num_workers": num_workers, "prefetch_factor": prefetch_factor}
    workers = min(num_workers, max(batches, 0))
    fitting = {"num_workers": workers, "prefetch_factor": batches // workers if workers else None}
    logger.warning(
        "%s has %.0f MB free for this process, and %d workers that prefetch %d batches of %.0f MB each need %.0f MB: "
        "using %d workers and prefetch_factor %s. %s.",
        *(SHARED_MEMORY, free / 1e6, num_workers, prefetch, batch_bytes / 1e6),
        *((num_workers * prefetch + IN_USE) * batch_bytes / 1e6, workers, fitting["prefetch_factor"], REMEDY),
    )
    return fitting


class SharedMemoryFull(OSError):
    """A DataLoader worker cannot hand over its batch.

    torch raises it again in the main process with the worker's traceback as its text, of which only the end is kept.
    """

    def __init__(self, text: str):
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class ToSharedMemory:
    """A collate_fn that raises `SharedMemoryFull`.

    torch moves tensors to shared memory in a thread of the worker. If that fails, the thread prints a traceback and
    drops the batch, and the main process waits for it forever.
    """

    collate: Callable[[Any], Any]

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        if torch.utils.data.get_worker_info() is None:
            return batch
        try:
            return recursively_apply(lambda tensor: tensor.share_memory_(), batch)
        except RuntimeError as error:
            raise SharedMemoryFull(
                f"a DataLoader worker cannot put its batch into {SHARED_MEMORY} ({error}). {REMEDY} or fewer workers."
            ) from None
