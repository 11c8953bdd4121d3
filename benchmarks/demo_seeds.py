"""The demo with three seeds, compared with a random locked tower: recall, wall time and peak memory.

python benchmarks/demo_seeds.py [--json figures.json]

Each run is a separate process, `train_clip.py --train_args_file train_args/train_demo.json`, and starts without
cached image features. Its model is then also evaluated on the held-out keywords.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEEDS = (1, 2, 3)
COLUMNS = ("R@1", "R@5", "R@10", "R@1 keywords", "R@5 keywords", "R@10 keywords", "seconds", "MB")


def make_random_tower(folder: str) -> None:
    """Write the demo's CLIP folder with an untrained image tower."""
    import shutil

    import torch
    from transformers import CLIPConfig, CLIPModel

    source = os.path.join(ROOT, "data", "demo", "clip-vit-emoji")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(source)).save_pretrained(folder)
    shutil.copy(os.path.join(source, "preprocessor_config.json"), folder)


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def train_and_test(seed: int, output: str, *overrides: str) -> dict[str, float]:
    """Run the demo once; recall is in percent."""
    command = ["train_clip.py", "--train_args_file", "train_args/train_demo.json"]
    for item in (f"seed={seed}", f"output_dir={output}/run", *overrides):
        command += ["--set", item]
    start = time.perf_counter()
    run(*command)
    seconds = time.perf_counter() - start
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    run(
        *("evaluate_clip.py", "--model", f"{output}/run/checkpoint-final", "--output", f"{output}/keywords"),
        *("--test_file", "data/demo/test_keywords.csv", "--image_path", "data/demo/images"),
    )
    with open(f"{output}/run/test_results.json") as file:
        recall = {f"R@{k}": 100 * value for k, value in recalls(json.load(file), "eval_")}
    with open(f"{output}/keywords/metrics.json") as file:
        recall |= {f"R@{k} keywords": 100 * value for k, value in recalls(json.load(file))}
    return {**recall, "seconds": seconds, "MB": megabytes}


def recalls(metrics: dict[str, float], prefix: str = "") -> list[tuple[int, float]]:
    return [(k, metrics[f"{prefix}text_to_image_recall@{k}"]) for k in (1, 5, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    figures = {"demo tower": [], "random tower": []}
    with tempfile.TemporaryDirectory() as scratch:
        make_random_tower(os.path.join(scratch, "random"))
        for name, overrides in (("demo tower", ()), ("random tower", (f"clip_pretrain_path={scratch}/random",))):
            for seed in SEEDS:
                output = os.path.join(scratch, f"{name}-{seed}")
                figures[name].append(train_and_test(seed, output, *overrides))
                print(
                    name, "seed", seed, {key: round(value, 1) for key, value in figures[name][-1].items()}, flush=True
                )
    print(f"\n{'':14}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, runs in figures.items():
        cells = ((statistics.mean(r[c] for r in runs), statistics.stdev(r[c] for r in runs)) for c in COLUMNS)
        print(f"{name:14}" + "".join(f"{f'{mean:.1f} ± {spread:.1f}':>16}" for mean, spread in cells))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
