"""The demo with three seeds: recall by name, by unseen keywords and in other phrasings, wall time and peak memory.

python benchmarks/demo_seeds.py [--development] [--dims 128 64 32] [--set KEY=VALUE ...] [--json figures.json]

Each run is a separate process, `train_clip.py --train_args_file train_args/train_demo.json`, and starts without
cached image features. Its model is then also evaluated on the held-out keywords and in the phrasings of
component/evaluation/phrasings.txt: the mean of the group "reported", and the full stop alone. The same is done with a
random locked tower. With --dims, export_model.py also shortens the model's vectors to these lengths, and the result is
evaluated by name: of the model ("cut"), and of one that was trained further with matryoshka_dims ("trained").

Choose settings with --development, which looks at neither the test style, nor the keywords of test_keywords.csv, nor
the reported phrasings: it holds back one more style and some of the training keywords, tests on these, and asks in
the phrasings of the group "development"; its punctuation mark is the question mark.
"""

import argparse
import csv
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(ROOT, "data", "demo")
SEEDS = (1, 2, 3)
KINDS, RECALL_AT = ("names", "punctuation", "phrasings", "keywords"), (1, 5, 10)
MARKS = {"reported": "{}。", "development": "{}？"}  # group of phrasings → its "punctuation"
WIDTH = 256  # of the demo's vectors
FURTHER = ["load_from_bert_clip=true", "num_train_epochs=8", "learning_rate=3e-4", "matryoshka_dims=[64, 32]"]
FURTHER.append('learning_rates={"visual_projection": 1e-4}')
HELD_BACK_STYLE, HELD_BACK_KEYWORDS = "openmoji", 0.1  # of --development; the image tower has seen the style


def make_random_tower(folder: str) -> None:
    """Write the demo's CLIP folder with an untrained image tower."""
    import shutil

    import torch
    from transformers import CLIPConfig, CLIPModel

    source = os.path.join(DEMO, "clip-vit-emoji")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(source)).save_pretrained(folder)
    shutil.copy(os.path.join(source, "preprocessor_config.json"), folder)


def make_development_tables(folder: str) -> None:
    """Write train, test and test_keywords.csv: the demo's training data with a style and some keywords held back."""

    def read(name: str) -> list[tuple[str, str]]:
        with open(os.path.join(DEMO, name), encoding="utf-8", newline="") as file:
            return [(row["text"], row["filename"]) for row in csv.DictReader(file)]

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "filename"), *rows])

    train, name_of = read("train.csv"), {os.path.basename(file): name for name, file in read("test.csv")}
    keywords = {}  # image name without style → words of its captions that are not about its name
    for text, file in train:
        emoji = os.path.basename(file)
        words = (word for word in re.split("[，、,]", text) if name_of[emoji] not in word)
        keywords.setdefault(emoji, {}).update(dict.fromkeys(words))
    names = "\n".join(name_of.values())
    words = sorted({word for group in keywords.values() for word in group if len(word) > 1 and word not in names})
    held_back = set(random.Random(0).sample(words, round(HELD_BACK_KEYWORDS * len(words))))
    pattern = re.compile("|".join(map(re.escape, held_back)))
    own_style = f"{HELD_BACK_STYLE}/"
    write("train.csv", [row for row in train if not row[1].startswith(own_style) and not pattern.search(row[0])])
    write("test.csv", [(name, own_style + emoji) for emoji, name in name_of.items()])
    write(
        "test_keywords.csv",
        [(word, own_style + emoji) for emoji, group in keywords.items() for word in group if word in held_back],
    )


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def train_and_test(
    seed: int, output: str, tables: str, phrasings: str, dims: list[int], overrides: list[str]
) -> dict[str, float]:
    """Run the demo once; recall is in percent.

    Args:
        tables: folder of train.csv, test.csv and test_keywords.csv.
        phrasings: group of the phrasings whose mean counts.
    """
    command = ["train_clip.py", "--train_args_file", "train_args/train_demo.json"]
    files = [f"{key}_file={tables}/{key}.csv" for key in ("train", "test")]
    for item in (*files, f"seed={seed}", f"output_dir={output}/run", *overrides):
        command += ["--set", item]
    start = time.perf_counter()
    run(*command)
    seconds = time.perf_counter() - start
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    names, keywords = (
        evaluate(f"{output}/run/checkpoint-final", f"{tables}/{name}.csv", f"{output}/{name}", *options)
        for name, options in (("test", ("--phrasings",)), ("test_keywords", ()))
    )
    punctuation = next(one for one in names["phrasings"] if one["phrasing"] == MARKS[phrasings])
    in_phrasings = names["phrasings_mean"][phrasings]
    found = (names, "text_to_image_"), (punctuation, ""), (in_phrasings, ""), (keywords, "text_to_image_")
    found += tuple((metrics, "text_to_image_") for metrics in shortened(output, files, tables, dims, seed))
    recall = {
        f"{kind} R@{k}": 100 * metrics[f"{direction}recall@{k}"]
        for kind, (metrics, direction) in zip(kinds(dims), found, strict=True)
        for k in RECALL_AT
    }
    return {**recall, "seconds": seconds, "MB": megabytes}


def kinds(dims: list[int]) -> list[str]:
    return [*KINDS, *(f"{way}, {dim} dims" for way in ("cut", "trained") for dim in ([WIDTH] * bool(dims) + dims))]


def shortened(output: str, files: list[str], tables: str, dims: list[int], seed: int) -> Iterator[dict]:
    """Yield the metrics of the model of `train_and_test`, and of the same trained further, in all lengths."""

    def shorten(model: str, dim: int) -> str:
        run(
            *("export_model.py", "--model", model, "--format", "checkpoint", "--output", f"{model}-{dim}"),
            *("--dim", str(dim), "--train_file", f"{tables}/train.csv", "--image_path", "data/demo/images"),
        )
        return f"{model}-{dim}"

    if not dims:
        return
    model = f"{output}/run/checkpoint-final"
    settings = [
        *files,
        f"seed={seed}",
        *FURTHER,
        f"output_dir={output}/further",
    ]
    settings.append(f"clip_pretrain_path={shorten(model, WIDTH)}")
    command = ["train_clip.py", "--train_args_file", "train_args/train_demo.json"]
    run(*command, *(word for item in settings for word in ("--set", item)))
    for trained in (model, f"{output}/further/checkpoint-final"):
        for dim in [WIDTH, *dims]:
            folder = f"{trained}-{dim}" if os.path.exists(f"{trained}-{dim}") else shorten(trained, dim)
            yield evaluate(folder, f"{tables}/test.csv", f"{folder}-metrics")


def evaluate(model: str, table: str, output: str, *options: str) -> dict:
    """The metrics.json of evaluate_clip.py."""
    run(
        *("evaluate_clip.py", "--model", model, "--test_file", table, "--output", output),
        *("--image_path", "data/demo/images", *options),
    )
    with open(f"{output}/metrics.json") as file:
        return json.load(file)


def spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--development", action="store_true", help="hold back from the training data, as above")
    parser.add_argument("--dims", nargs="+", type=int, default=[], help="also evaluate vectors of these lengths")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of train_clip.py")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        tables, phrasings, towers = DEMO, "reported", {"demo tower": []}
        if options.development:
            tables, phrasings = scratch, "development"
            make_development_tables(scratch)
        else:
            make_random_tower(os.path.join(scratch, "random"))
            towers["random tower"] = [f"clip_pretrain_path={scratch}/random"]
        for name, overrides in towers.items():
            for seed in SEEDS:
                output = os.path.join(scratch, f"{name}-{seed}")
                result = train_and_test(seed, output, tables, phrasings, options.dims, [*options.set, *overrides])
                figures.setdefault(name, []).append(result)
                print(name, "seed", seed, {key: round(value, 1) for key, value in result.items()}, flush=True)
    for name, runs in figures.items():
        print(f"\n{name:16}" + "".join(f"{f'R@{k}':>16}" for k in RECALL_AT))
        for kind in kinds(options.dims):
            print(f"{kind:16}" + "".join(f"{spread(runs, f'{kind} R@{k}'):>16}" for k in RECALL_AT))
        print(f"{spread(runs, 'seconds')} seconds, {spread(runs, 'MB')} MB")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
