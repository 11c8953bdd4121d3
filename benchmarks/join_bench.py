"""What joining verdicts takes, by growing sizes: CPU seconds, peak memory (Linux), and the size of the keep-list.

    python benchmarks/join_bench.py --millions 1 3 10 --memory 2GB

Made-up verdicts: random hashes, of which a tenth are two bits from one of 100,000 centres. The rules are min_side,
min_similarity, exact and near duplicates. Each size runs in a process of its own.
"""

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from component.filter.join import write_keep_list
from component.filter.rules import FilterRules
from component.filter.verdicts import COLUMNS, find_verdicts
from component.pairs.parquet import import_pyarrow

ROWS = 1_000_000  # per table
CENTRES = 100_000


def write_verdicts(folder: str, millions: int) -> None:
    pyarrow = import_pyarrow()
    dice = np.random.default_rng(0)

    def hashes(count: int) -> np.ndarray:
        return dice.integers(-(2**63), 2**63, count)

    centres = hashes(CENTRES)
    for number in range(millions):
        near = ROWS // 10
        flipped = np.bitwise_xor.reduce(np.int64(1) << dice.integers(0, 62, (2, near)))
        phash = dice.permutation(np.concatenate([hashes(ROWS - near), dice.choice(centres, near) ^ flipped]))
        values = {
            **{"file": f"{number:05d}.tar", "digest": "0" * 32, "row": np.arange(ROWS), "status": "ok", "model": "m"},
            **{"key": [f"{number:05d}{row:06d}" for row in range(ROWS)], "image": hashes(ROWS), "phash": phash},
            **{"text_digest": hashes(ROWS), "image_digest": hashes(ROWS), "score": dice.normal(0.3, 0.05, ROWS)},
        }
        columns = [
            value
            if hasattr(value := values.get(name, 256), "__len__") and not isinstance(value, str)
            else [value] * ROWS
            for name in COLUMNS
        ]
        table = pyarrow.table(columns, schema=pyarrow.schema([*COLUMNS.items()]))
        pyarrow.parquet.write_table(table, os.path.join(folder, f"{number:05d}.tar.verdicts.parquet"))


def measure(millions: int, memory: str | None, folder: str) -> None:
    keep, start = os.path.join(folder, "keep.parquet"), time.process_time()
    rules = FilterRules(min_side=64, exact_duplicates=True, near_duplicates=True)
    reasons = write_keep_list(find_verdicts([folder]), keep, rules, 0.2, memory)
    seconds = time.process_time() - start
    assert sum(reasons.values()) == millions * ROWS and reasons["near_duplicate"]
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
    print(f"{millions:>8} {seconds:>6.0f} {peak:>7.0f} {os.path.getsize(keep) / 1e6:>12.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--memory", help="DuckDB's limit, such as 2GB")
    parser.add_argument("--folder", help="for the verdicts; it needs 100 MB for each million rows")
    args = parser.parse_args()
    print("millions  CPU s      MB keep-list MB", flush=True)
    for millions in args.millions:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write_verdicts(folder, millions)
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(millions, args.memory, folder)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    main()
