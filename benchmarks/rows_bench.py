"""Memory of each command per million rows, from the peaks of its largest process at two sizes of a table.

    python benchmarks/rows_bench.py --out rows_bench.json

Each command is a process of its own, with tiny towers and small images, one file and one caption per row:

download  download_image.py on images that are all there
filter    filter_data.py with --exact_duplicates and --near_duplicates
check     train_clip.py with check_data
start     train_clip.py for one step without prepared table, features or evaluation
prepared  the same from a prepared table of an earlier start
evaluate  evaluate_clip.py on all rows
index     search_image.py index, a second time, when every row is known
embed     search_image.py embed on shards of 10,000 images, which needs no more for more shards

Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IN_A_SHARD = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 60_000], metavar="N")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--out", help="JSON file with the table")
    parser.add_argument("--make", nargs=2, metavar=("FOLDER", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_data(Path(options.make[0]), int(options.make[1]))
        return
    few, many = sorted(options.rows)
    peaks = {}
    for rows in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            # Not in this process: the peak of a child is at least what its parent had when it was started.
            peak_megabytes([__file__, "--make", folder, rows])
            for name in options.commands:
                peaks[name, rows] = peak_megabytes(COMMANDS[name](Path(folder)))
                print(f"{name:<9} {rows:>10,} rows {peaks[name, rows]:>8.0f} MB", flush=True)
    table = [
        {"command": name, "megabytes": peaks[name, few], "per_million": megabytes_per_million(peaks, name, few, many)}
        for name in options.commands
    ]
    print(f"\n{'command':<9} {'MB at ' + format(few, ','):>14} {'MB per million rows':>20}")
    for row in table:
        print(f"{row['command']:<9} {row['megabytes']:>14.0f} {row['per_million']:>20.0f}")
    if options.out:
        Path(options.out).write_text(json.dumps({"rows": [few, many], "table": table}, indent=2) + "\n")


def megabytes_per_million(peaks: dict, name: str, few: int, many: int) -> float:
    return (peaks[name, many] - peaks[name, few]) / (many - few) * 1e6


def peak_megabytes(command: list) -> float:
    """Run a script, and return the peak of the resident memory of its largest process."""
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed with status {process.returncode}")
    return usage.ru_maxrss / 1024


def make_data(folder: Path, rows: int) -> None:
    """Write images, train.csv, shards and a model."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    from PIL import Image
    from synthetic import make_model, make_processor

    from component.checkpoint import save_checkpoint

    images, shards = folder / "images", folder / "shards"
    images.mkdir()
    shards.mkdir()
    random = np.random.default_rng(0)
    for row in range(rows):
        # Each image in a folder of a thousand, as download_image.py keeps them.
        path = images / f"{row // 1000:04d}" / f"{row:09d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (72, 72), dtype=np.uint8).repeat(3).reshape(72, 72, 3)).save(path)
    names = [f"{row // 1000:04d}/{row:09d}.jpg" for row in range(rows)]
    lines = [f"一张图片的描述，编号是{row},http://127.0.0.1:9/{name},{name}\n" for row, name in enumerate(names)]
    (folder / "train.csv").write_text("text,url,filename\n" + "".join(lines), encoding="utf-8")
    for start in range(0, rows, IN_A_SHARD):
        with tarfile.open(shards / f"{start // IN_A_SHARD:05d}.tar", "w") as shard:
            for name in names[start : start + IN_A_SHARD]:
                shard.add(images / name, os.path.basename(name))
    save_checkpoint(make_model("tiny"), make_processor(folder), str(folder / "model"))
    arguments = {
        **{"output_dir": str(folder / "run"), "clip_pretrain_path": str(folder / "model"), "load_from_bert_clip": 1},
        **{"train_file": str(folder / "train.csv"), "image_path": str(images), "max_seq_length": 32, "max_steps": 1},
        **{"per_device_train_batch_size": 64, "save_strategy": "no", "overwrite_output_dir": True},
        **{"dataloader_num_workers": 0, "image_feature_cache": "off", "pair_table": "off", "report_to": "none"},
    }
    (folder / "train.json").write_text(json.dumps(arguments))


def download(folder: Path) -> list:
    return [
        *("download_image.py", "--train_file", folder / "train.csv", "--image_path", folder / "images"),
        *("--report", folder / "report.csv", "--verify"),
    ]


def filter_(folder: Path) -> list:
    return [
        *("filter_data.py", "--train_file", folder / "train.csv", "--image_path", folder / "images"),
        *("--out_file", folder / "kept.csv", "--exact_duplicates", "--near_duplicates"),
    ]


def train(folder: Path, *overrides: str) -> list:
    command = ["train_clip.py", "--train_args_file", folder / "train.json"]
    for override in overrides:
        command += ["--set", override]
    return command


def check(folder: Path) -> list:
    return train(folder, "check_data=true")


def start(folder: Path) -> list:
    return train(folder)


def prepared(folder: Path) -> list:
    tables = f"pair_table={folder / 'tables'}"
    peak_megabytes(train(folder, tables))
    return train(folder, tables)


def evaluate(folder: Path) -> list:
    return [
        *("evaluate_clip.py", "--model", folder / "model", "--test_file", folder / "train.csv"),
        *("--image_path", folder / "images", "--output", folder / "evaluation"),
    ]


def index(folder: Path) -> list:
    command = ["search_image.py", "index", "--model", folder / "model", "--images", folder / "images"]
    peak_megabytes([*command, "--gallery", folder / "gallery"])
    return [*command, "--gallery", folder / "gallery"]


def embed(folder: Path) -> list:
    return [
        *("search_image.py", "embed", "--model", folder / "model", "--images", *(folder / "shards").iterdir()),
        *("--vectors", folder / "vectors"),
    ]


COMMANDS = {
    **{"download": download, "filter": filter_, "check": check, "start": start, "prepared": prepared},
    **{"evaluate": evaluate, "index": index, "embed": embed},
}


if __name__ == "__main__":
    main()
