"""How far each process is with the features: files on the shared disk, so that a fast one can wait for a slow
one longer than any collective can, and say who is late."""

import logging
import os
import platform
import secrets
import shutil
import time
from contextlib import suppress

from accelerate import PartialState

from component.ground.files import write_text
from component.training.first_process import on_first_process
from component.training.interruption import RunFailed
from component.training.shared_disk import sees

logger = logging.getLogger(__name__)

NOTE_SECONDS = 10  # between two notes of one process
TELL_SECONDS = 300  # between two lines in the log about who is late
SILENCE_SECONDS = 3600  # without any progress of a late process, after which the run ends
DONE = "done"


class FillProgress:
    """All processes make one together, note what they do, and wait.

    Args:
        cache: the `FeatureCache` that is filled.
        total: items that this process has to compute.

    Raises:
        ValueError: a process does not see the folder of the others.
    """

    def __init__(self, cache, total: int):
        self._cache = cache
        self._process, self._total, self._done, self._noted = PartialState(), total, 0, 0.0
        self._folder = os.path.join(cache.folder, on_first_process(lambda: f".progress-{secrets.token_hex(4)}"))
        if self._process.num_processes == 1:
            return
        os.makedirs(self._folder, exist_ok=True)
        self._note()
        self._process.wait_for_everyone()
        for rank in range(self._process.num_processes):
            if not sees(self._path(rank)):
                raise ValueError(
                    f"process {self._process.process_index} on {platform.node()} does not see in {cache.folder} what "
                    f"process {rank} has written there. {cache.remedy('a folder on a disk that all machines share')}."
                )

    def add(self, items: int) -> None:
        """Note some more items that are computed."""
        self._done += items
        if time.monotonic() - self._noted > NOTE_SECONDS:
            self._note()

    def wait(self) -> None:
        """Wait until all processes have come here. Raises RunFailed if a late one makes no progress."""
        if self._process.num_processes == 1:
            return
        self._note(DONE)
        start = told = changed = time.monotonic()
        before = None
        while late := self._late():
            now = time.monotonic()
            if late != before:
                before, changed = late, now
            names = ", ".join(f"process {rank} ({note})" for rank, note in late.items())
            if now - changed > SILENCE_SECONDS:
                raise RunFailed(
                    f"{names} did nothing for {SILENCE_SECONDS / 60:.0f} minutes, while the others waited for its "
                    f"{self._cache.of} features. Look at that machine, then start again: what is computed stays."
                )
            if now - told > TELL_SECONDS:
                told = now
                logger.info("waiting for the %s features of %s", self._cache.of, names)
            time.sleep(min(0.02 + (now - start) / 10, 5))
        self._process.wait_for_everyone()
        if self._process.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _late(self) -> dict[int, str]:
        """Rank → its last note, of those that have not finished."""
        notes = {}
        for rank in range(self._process.num_processes):
            note = "unknown"
            with suppress(OSError), open(self._path(rank), encoding="utf-8") as file:
                note = file.read()
            if note != DONE:
                notes[rank] = note
        return notes

    def _note(self, text: str | None = None) -> None:
        self._noted = time.monotonic()
        if self._process.num_processes > 1:
            text = text or f"{self._done:,} of {self._total:,} {self._cache.of}s, on {platform.node()}"
            write_text(self._path(self._process.process_index), text)

    def _path(self, rank: int) -> str:
        return os.path.join(self._folder, str(rank))
