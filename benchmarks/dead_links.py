"""What a million missing images cost a run: memory of a process, lines in its log, bytes in a checkpoint.

    python benchmarks/dead_links.py --missing 1000000

The images are left out by the classes that training uses: found while the feature cache is filled (`Reasons`), known
at every start (`BadImages.know`), or met in an epoch (`RowSet`), at random among
ten times as many rows. One process, no model, Linux only.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from accelerate import PartialState
from peak_memory import PeakMemory

from component.training.bad_images import BadImages, RowSet
from component.training.reasons import Reasons


class Lines(logging.Handler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", type=int, default=1_000_000)
    missing = parser.parse_args().missing
    PartialState(cpu=True)
    logger, lines = logging.getLogger("component.training.bad_images"), Lines()
    logger.addHandler(lines)
    logger.propagate = False

    memory, reasons = PeakMemory(on_gpu=False), Reasons()
    for row in range(missing):
        reasons.add(row, reason_of(row))
    print(f"found while the cache is filled: {memory.megabytes():.0f} MB")

    with tempfile.TemporaryDirectory() as folder:
        bad = BadImages(folder, True, "train")
        bad.know("train", "train.csv", Known(missing))
        size = (Path(folder) / "left_out_train.csv").stat().st_size
        print(f"known at a start: {lines.count} lines in the log, {size / 1e6:.0f} MB in left_out_train.csv")

    rows = np.random.default_rng(0).choice(10 * missing, missing, replace=False)
    met = RowSet()
    for row in rows.tolist():
        met.add(row)
    print(f"met in an epoch, of ten times as many: {len(met.to_text()) / 1e6:.2f} MB in a checkpoint")


def reason_of(row: int) -> str:
    return f"{row // 1000:04d}/{row:09d}.jpg: no such file"


class Known(dict):
    """Row → reason, read when it is asked for, as the index of the features does."""

    def __init__(self, rows: int):
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def items(self):
        return ((row, reason_of(row)) for row in range(self._rows))

    def values(self):
        return (reason for _, reason in self.items())


if __name__ == "__main__":
    main()
