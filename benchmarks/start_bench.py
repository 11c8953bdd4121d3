"""What a training waits for before its first batch, at several sizes of the table.

    python benchmarks/start_bench.py --out start_bench.json
    python benchmarks/start_bench.py --rows 20000000 --images 0

Every start is a process of its own, measured from the end of its imports to its first batch of 1,024 pairs.
in memory: the table is read and tokenized at each start, `pair_table: off`.
first: the same, and written for all later starts.
second: mapped.
cached: as second, with image features, each of which is there. The state of every image file is compared; the files
  are empty, and the features are made up. Up to --images rows, because files take time to make.
private: memory that the process has for itself after 20 batches, beyond what it had after the imports (Linux only).
  What is mapped belongs to the page cache, which all processes share.

Captions have 5 to 40 characters, one token each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import CHARACTERS, make_processor

from component.datacollator import PairCollator
from component.dataset import PairDataset, Pairs
from component.processor import load_processor, save_processor
from component.training.feature_cache import FeatureCache, cache_features, image_key
from component.training.sampler import SharedBatches

WIDTH, BATCH, BATCHES = 8, 1024, 20
CHUNK = 100_000
STARTS = ("in memory", "first", "second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_400_000])
    parser.add_argument("--images", type=int, default=200_000, help="larger tables without the feature cache")
    parser.add_argument("--out", help="JSON file with the table")
    parser.add_argument("--start", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(*options.start)))
        return
    results = {**vars(options), "device": f"{os.cpu_count()} CPU cores", "table": []}
    print(f"{'rows':>12} {'case':<10} {'seconds':>8} {'private MB':>11}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            make_table(Path(folder), rows)
            starts = STARTS
            if rows <= options.images:
                make_features(Path(folder), rows)
                starts += ("cached", "cached")  # the first of them looks up where the features lie
            for case in starts:
                command = [sys.executable, __file__, "--start", case, folder]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                row = {"rows": rows, "case": case, **json.loads(output)}
                results["table"].append(row)
                print(f"{rows:>12,} {case:<10} {row['seconds']:>8.2f} {row['private_megabytes']:>11.0f}", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def make_table(folder: Path, rows: int) -> None:
    save_processor(make_processor(folder), str(folder / "processor"))
    random, characters = np.random.default_rng(0), np.array(CHARACTERS[:3000])
    with open(folder / "train.csv", "w", encoding="utf-8") as file:
        file.write("text,filename\n")
        for first in range(0, rows, CHUNK):
            numbers = range(first, min(first + CHUNK, rows))
            lengths = random.integers(5, 41, len(numbers))
            text = "".join(random.choice(characters, lengths.sum()))
            ends = lengths.cumsum()
            for number, end, length in zip(numbers, ends.tolist(), lengths.tolist(), strict=True):
                file.write(f"{text[end - length : end]},{image_of(number)}\n")


def image_of(number: int) -> str:
    return f"{number // 10_000:05d}/{number:09d}.jpg"


def make_features(folder: Path, rows: int) -> None:
    for number in range(rows):
        path = folder / image_of(number)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    table = load(folder, "in memory").table
    keys = np.array([image_key(table.image_identity(row)) for row in range(rows)], np.int64)
    FeatureCache(str(folder / "features"), "tower", WIDTH).add([(keys, torch.ones(rows, WIDTH).half())])


def load(folder: Path, case: str) -> PairDataset:
    processor = load_processor(str(folder / "processor"))
    tables = None if case == "in memory" else str(folder / "tables")
    return PairDataset(str(folder / "train.csv"), str(folder), processor, 100, folder=tables)


def start(case: str, folder: str) -> dict[str, float]:
    """Seconds to the first batch, and private MB after some."""
    memory, begin = private_megabytes(), time.perf_counter()
    pairs = load(Path(folder), case)
    if case == "cached":
        cache = FeatureCache(f"{folder}/features", "tower", WIDTH)
        images = cache_features(pairs.images, cache, None, BATCH, show_progress=False)
        pairs = Pairs(pairs.table, images)
    else:
        pairs.images.load = lambda rows, generator: (rows, {}, [])  # the table alone
    collate = PairCollator(0)
    for part, _ in zip(SharedBatches(len(pairs), BATCH), range(BATCHES), strict=False):
        examples = pairs.__getitems__(part)
        if part.places.start == 0:
            if case == "cached":
                collate(examples)
            seconds = time.perf_counter() - begin
    return {"seconds": seconds, "private_megabytes": private_megabytes() - memory}


def private_megabytes() -> float:
    if not os.path.exists("/proc/self/smaps_rollup"):
        return float("nan")
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


if __name__ == "__main__":
    main()
