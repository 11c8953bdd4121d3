"""Time from the start of a training to its first batch, for several table sizes.

    python benchmarks/start_bench.py --out start_bench.json
    python benchmarks/start_bench.py --rows 20000000 --cases first second cached together --out start_bench_20m.json

Each start is a separate process, measured from the end of its imports to its first batch of 1,024 pairs.
in memory: the table is read and tokenized at each start, `pair_table: off`.
first: the same, and written for all later starts.
second: mapped.
cached: as second, with image features that all exist; once when their index is built, and once when it is mapped.
together: two processes of the last kind at the same time; the private memory is that of the larger one (Linux only).

A table of up to --images rows is a CSV with image files, whose states are compared; the files are empty, and the
features invented. A larger one consists of shards of 10,000 pairs with invented indexes, because scale_bench.py
measures the scanning of tars, and that many files take hours to write.
private: memory that belongs to the process alone after 20 batches, beyond what it had after the imports. Mapped files
  belong to the page cache, but the system counts pages that a single process has touched as that process's own, so the
  figure is high for a process that runs alone.

Captions have 5 to 40 characters, one token each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import CHARACTERS as ALL_CHARACTERS
from synthetic import make_processor

from component.datacollator import PairCollator
from component.dataset import PairDataset, Pairs
from component.ground.file_state import FileState
from component.pairs.file_content import content_of
from component.pairs.shards import Shard, ShardIndex
from component.pairs.work import Work
from component.processor import load_processor, save_processor
from component.training.feature_cache import FeatureCache
from component.training.image_features import cache_features
from component.training.sampler import SharedBatches

WIDTH, BATCH, BATCHES = 8, 1024, 20
IN_A_SHARD = 10_000
CHARACTERS = np.array(ALL_CHARACTERS[:3000])
CASES = {"in memory": 1, "first": 1, "second": 1, "cached": 2, "together": 1}  # and the number of runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_400_000])
    parser.add_argument("--images", type=int, default=200_000, help="larger tables are shards instead of files")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", help="JSON file with the table")
    parser.add_argument("--start", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*options.start)
        return
    results = {**vars(options), "device": f"{os.cpu_count()} CPU cores", "table": []}
    print(f"{'rows':>12} {'case':<10} {'seconds':>8} {'private MB':>11}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            make_table(Path(folder), rows, as_files=rows <= options.images)
            for case in (case for case, times in CASES.items() for _ in range(times) if case in options.cases):
                if case == "cached" and not os.path.exists(f"{folder}/features"):
                    make_features(Path(folder))
                row = {"rows": rows, "case": case, **measure(case, folder)}
                results["table"].append(row)
                print(f"{rows:>12,} {case:<10} {row['seconds']:>8.2f} {row['private_megabytes']:>11.0f}", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def measure(case: str, folder: str) -> dict[str, float]:
    """Seconds of the slowest process, and memory of the largest."""
    command = [sys.executable, __file__, "--start", "cached" if case == "together" else case, folder]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2 if case == "together" else 1)
    ]
    seconds = [float(process.stdout.readline()) for process in processes]  # all have reached the same point
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    memory = [float(process.stdout.readline()) for process in processes]  # while all are running
    for process in processes:
        process.communicate()
    return {"seconds": max(seconds), "private_megabytes": max(memory)}


def make_table(folder: Path, rows: int, as_files: bool) -> None:
    save_processor(make_processor(folder), str(folder / "processor"))
    shards = -(-rows // IN_A_SHARD)
    (folder / "rows").write_text(str(rows))
    for shard in range(shards):
        if not as_files:
            (folder / f"{shard:06d}.tar").touch()
            continue
        (folder / f"{shard:06d}").mkdir()
        for name in names_of(shard, rows):
            (folder / name).touch()
    if as_files:
        with open(folder / "train.csv", "w", encoding="utf-8") as file:
            file.write("text,filename\n")
            for shard in range(shards):
                pairs = zip(texts_of(shard, rows), names_of(shard, rows), strict=True)
                file.writelines(f"{text},{name}\n" for text, name in pairs)


def names_of(shard: int, rows: int) -> list[str]:
    numbers = range(shard * IN_A_SHARD, min((shard + 1) * IN_A_SHARD, rows))
    return [f"{shard:06d}/{number:09d}.jpg" for number in numbers]


def texts_of(shard: int, rows: int) -> list[str]:
    random = np.random.default_rng(shard)
    lengths = random.integers(5, 41, len(names_of(shard, rows)))
    text, ends = "".join(random.choice(CHARACTERS, lengths.sum())), lengths.cumsum()
    return [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


class MadeUpShards(Work):
    """Empty tars with the indexes that a scan of complete ones would return."""

    def __init__(self, rows: int):
        super().__init__()
        self._rows = rows

    def index_shards(self, paths: Sequence[str]) -> Iterator[ShardIndex]:
        for path in paths:
            shard = int(Path(path).stem)
            names = names_of(shard, self._rows)
            locators = [f"{20_480 * number + 512} 19000 {name}" for number, name in enumerate(names)]
            state = FileState.of(path)
            yield ShardIndex(Shard(path, state), content_of(path, state), locators, texts_of(shard, self._rows))


def make_features(folder: Path) -> None:
    table = load(folder, "second").table

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for first in range(0, len(table), BATCH):
            rows = np.arange(first, min(first + BATCH, len(table)))
            yield table.image_keys(rows, table.image_states(rows)), torch.ones(len(rows), WIDTH).half()

    FeatureCache(str(folder / "features"), "tower", WIDTH).add(batches())


def load(folder: Path, case: str) -> Pairs:
    processor = load_processor(str(folder / "processor"))
    csv = folder / "train.csv"
    file = str(csv if csv.exists() else folder / "*.tar")
    work = MadeUpShards(int((folder / "rows").read_text()))
    tables = None if case == "in memory" else str(folder / "tables")
    return PairDataset(file, str(folder), processor, 100, folder=tables, work=work)


def start(case: str, folder: str) -> None:
    """Print the seconds to the first batch; after a line of input, the private MB after some batches; then wait for
    the end of the input."""
    memory, begin = private_megabytes(), time.perf_counter()
    pairs = load(Path(folder), case)
    if case == "cached":
        cache = FeatureCache(f"{folder}/features", "tower", WIDTH)
        images = cache_features(pairs.images, cache, None, BATCH, show_progress=False)
        pairs = Pairs(pairs.table, images)
    else:
        pairs.images.load = lambda rows, generator: (rows, {}, {})  # the table alone
    collate = PairCollator(0)
    for part, _ in zip(SharedBatches(len(pairs), BATCH), range(BATCHES), strict=False):
        examples = pairs.__getitems__(part)
        if part.positions.start == 0:
            if case == "cached":
                collate(examples)
            seconds = time.perf_counter() - begin
    print(seconds, flush=True)
    sys.stdin.readline()
    print(private_megabytes() - memory, flush=True)
    sys.stdin.read()


def private_megabytes() -> float:
    if not os.path.exists("/proc/self/smaps_rollup"):
        return float("nan")
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


if __name__ == "__main__":
    main()
