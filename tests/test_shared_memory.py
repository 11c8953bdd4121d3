"""Batches of DataLoader workers in a /dev/shm that is too small for them."""

import os
import resource
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from component.ground.shared_memory import SHARED_MEMORY, ToSharedMemory, worker_options

pytestmark = pytest.mark.skipif(not os.path.isdir(SHARED_MEMORY), reason=f"no {SHARED_MEMORY} here")


def collate(examples: list[int]) -> dict:
    return {"model_inputs": {"pixel_values": torch.zeros(len(examples), 100_000)}, "rows": examples}


def test_batches_that_fit_leave_the_workers_as_they_are(caplog):
    assert worker_options(2, 1000, 4) == {"num_workers": 2, "prefetch_factor": 4}
    assert worker_options(0, 2**60) == {"num_workers": 0, "prefetch_factor": None} and not caplog.text


def test_batches_that_do_not_fit_are_fewer_with_a_warning(caplog):
    free = shutil.disk_usage(SHARED_MEMORY).free
    assert worker_options(4, free // 10, 4) == {"num_workers": 4, "prefetch_factor": 2}
    assert worker_options(16, free // 10, 4) == {"num_workers": 8, "prefetch_factor": 1}
    assert worker_options(4, free) == {"num_workers": 0, "prefetch_factor": None}
    assert caplog.text.count("MB free for this process, and") == 3 and "docker run --shm-size" in caplog.text


def test_a_worker_that_finds_it_full_is_one_line():
    """Simulated by a limit on file sizes; without `ToSharedMemory`, this waits forever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="^a DataLoader worker cannot put its .*--shm-size") as error:
            list(DataLoader(range(8), 4, num_workers=1, collate_fn=ToSharedMemory(collate)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
