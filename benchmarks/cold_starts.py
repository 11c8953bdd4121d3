"""How long each script takes from its start to its end, with as little work as possible.

python train_clip.py --train_args_file train_args/train_demo.json
python benchmarks/cold_starts.py [--model output/demo/checkpoint-final] [--trees OTHER_CHECKOUT .] [--rounds 3]

In one tree after the other, each command runs once to fill caches, and then once per round. (Versions share what they
keep of a model and would undo it for each other.) The table has the smallest CPU time (user and system, children
included) and the smallest wall time of the rounds, in seconds. A command that a tree lacks is shown as "–".
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pandas as pd

from component.report.text_table import markdown_table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGES = os.path.join(ROOT, "data", "demo", "images")
ROWS = 64


def commands(model: str, scratch: str) -> dict[str, list[str]]:
    """What is shown → the arguments of python. `{new}` is another path in each run, `{own}` one in each tree."""
    pairs, gallery = f"{scratch}/pairs.csv", "{own}-gallery"
    table = ["--image_path", IMAGES]
    images = [os.path.join(ROOT, "images", "test", name) for name in ("fluent_cat.png", "fluent_dog.png")]
    demo = ["--train_args_file", "train_args/train_demo.json", "--set", "max_steps=1", "--set", "output_dir={new}"]
    return {
        "`train_clip.py`, the demo, 1 step": ["train_clip.py", *demo],
        f"`evaluate_clip.py`, {ROWS} pairs": (
            ["evaluate_clip.py", "--model", model, "--test_file", pairs, "--output", "{new}", *table]
        ),
        "`predict_similarity.py`, 2 texts": ["predict_similarity.py", "--model", model, "--texts", "小猫", "小狗"],
        "`predict_similarity.py`, 2 texts, 2 images": (
            ["predict_similarity.py", "--model", model, "--texts", "小猫", "小狗", "--images", *images]
        ),
        "`search_image.py index`, 2 images": (
            ["search_image.py", "index", "--model", model, "--images", *images, "--gallery", gallery]
        ),
        "`search_image.py query`, 1 text": ["search_image.py", "query", "--gallery", gallery, "--text", "小狗"],
        f"`filter_data.py`, {ROWS} pairs": (
            ["filter_data.py", "--train_file", pairs, "--out_file", "{new}.csv", *table]
        ),
        "`export_model.py`, vision-text-dual-encoder": (
            ["export_model.py", "--model", model, "--format", "vision-text-dual-encoder", "--output", "{new}"]
        ),
        "`download_image.py --help`": ["download_image.py", "--help"],
    }


def run(arguments: list[str], tree: str, scratch: str) -> tuple[float, float] | None:
    """CPU and wall seconds; None if the tree has no such command."""
    new = tempfile.mktemp(dir=scratch)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    own = os.path.join(scratch, os.path.basename(tree))
    command = [sys.executable, *(item.replace("{new}", new).replace("{own}", own) for item in arguments)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(f"{tree}: {' '.join(command)}\n{done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="output/demo/checkpoint-final")
    parser.add_argument("--trees", nargs="+", default=[ROOT], help="checkouts to compare (default: this one)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trees = [os.path.abspath(tree) for tree in options.trees]
    with tempfile.TemporaryDirectory() as scratch:
        pairs = pd.read_csv(os.path.join(ROOT, "data", "demo", "test.csv"), nrows=ROWS)
        pairs.to_csv(f"{scratch}/pairs.csv", index=False)
        todo = commands(os.path.abspath(options.model), scratch)
        table = {name: [name] for name in todo}
        for tree in trees:
            for name, arguments in todo.items():
                runs = [run(arguments, tree, scratch) for _ in range(options.rounds + 1)][1:]
                missing = None in runs
                table[name] += ["–", "–"] if missing else [f"{min(kind):.2f}" for kind in zip(*runs, strict=True)]
                print(*table[name], flush=True)
    heads = [f"{kind} s, {os.path.basename(tree)}" for tree in trees for kind in ("CPU", "wall")]
    print("\n" + markdown_table(["Command", *heads], list(table.values())))


if __name__ == "__main__":
    main()
