"""What fine-tuning gains and what it forgets, on the demo data, with three seeds: "own" and "kept" recall.

python train_clip.py --train_args_file train_args/train_demo.json
python benchmarks/finetune_bench.py [--json figures.json]

The demo's model learns the words held out of its training (test_keywords.csv), each with images in the styles that it
was trained on. "own" is recall for those words in the style that it never saw; "kept" is recall for the names of the
emoji (test.csv), which it knew before, in the same style. Every second row of both is used to choose the alpha of the
blends, the other rows give the figures: text → image R@1 and mean recall, in percent.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time

import pandas as pd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# As the scripts do, before torch is imported: on a busy machine, a training took 1,350 s instead of 8.
os.environ["GOMP_SPINCOUNT"] = "1000"

from demo_seeds import ROOT, SEEDS

from component.argument import load_arguments
from component.blend import load_ends
from component.checkpoint import load_checkpoint
from component.evaluation.blend import measure_blends
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import RetrievalData, read_retrieval_data
from component.report.text_table import markdown_table
from train_clip import train

DEMO = os.path.join(ROOT, "data", "demo")
IMAGES = os.path.join(DEMO, "images")
# The demo's towers are small and trained briefly: their learning rate is far above that of train_args/finetune.json.
RECIPE = (
    "num_train_epochs=5",
    "per_device_train_batch_size=128",
    "max_seq_length=16",
    "fp16=false",
    "test_file=null",
)
RECIPE += ("eval_strategy=no", "save_strategy=no", "load_best_model_at_end=false", f"image_path={IMAGES}")
RECIPE += (
    "contrastive_chunk_size=null",
    "dataloader_num_workers=0",
    "disable_tqdm=true",
    "report_to=none",
    "early_stopping_patience=null",
)
METHODS = {
    "text tower, lr 3e-4": ("learning_rate=3e-4",),
    "text tower, lr 1e-3": ("learning_rate=1e-3",),
    "with old pairs, lr 1e-3": ("learning_rate=1e-3", 'train_file=["{data}/tune.csv", "{data}/old.csv"]'),
    "LoRA of rank 8, lr 1e-3": ("learning_rate=1e-3", "lora_rank=8"),
    "last_n_blocks:1, lr 1e-3": ("learning_rate=1e-3", "freeze_vision=last_n_blocks:1", "image_feature_cache=off"),
}
BLENDED = ("text tower, lr 1e-3",)
COLUMNS = ("own R@1", "own MR", "kept R@1", "kept MR", "mean of MR", "alpha", "seconds")


def write_data(folder: str) -> None:
    """Write tune.csv, old.csv (the same number of pairs that the model knows), and both halves of own and kept."""
    known, own, kept = (pd.read_csv(os.path.join(DEMO, f"{name}.csv")) for name in ("train", "test_keywords", "test"))
    emoji = {name: table.filename.str.split("/").str[-1] for name, table in (("known", known), ("own", own))}
    images = known.assign(emoji=emoji["known"])[["emoji", "filename"]].drop_duplicates()
    tune = own.assign(emoji=emoji["own"])[["text", "emoji"]].merge(images, on="emoji")[["text", "filename"]]
    tables = {"tune": tune, "old": known.sample(len(tune), random_state=0)}
    for name, table in (("own", own), ("kept", kept)):
        tables |= {f"{name}_choose": table[::2], f"{name}_test": table[1::2]}
    for name, table in tables.items():
        table.to_csv(os.path.join(folder, f"{name}.csv"), columns=["text", "filename"], index=False)


def read(data: str, half: str) -> list[RetrievalData]:
    """Read own and kept, in this order."""
    return [read_retrieval_data(os.path.join(data, f"{name}_{half}.csv"), IMAGES) for name in ("own", "kept")]


def measure(model, processor, pairs: list[RetrievalData]) -> dict[str, float]:
    """Recall in percent."""
    own, kept = (evaluate_retrieval(model, processor, one, num_mistakes=0).metrics for one in pairs)
    found = {
        f"{name} {shown}": 100 * metrics[key]
        for name, metrics in (("own", own), ("kept", kept))
        for shown, key in (("R@1", "text_to_image_recall@1"), ("MR", "mean_recall"))
    }
    return {**found, "mean of MR": (found["own MR"] + found["kept MR"]) / 2}


def tune(model: str, data: str, seed: int, output: str, overrides: tuple[str, ...]) -> str:
    """Train with train_args/finetune.json and return the checkpoint."""
    given = (f"clip_pretrain_path={model}", f"train_file={data}/tune.csv", f"seed={seed}", f"output_dir={output}")
    items = (*given, *RECIPE, f"image_feature_cache={data}/features", *overrides)
    recipe = os.path.join(ROOT, "train_args", "finetune.json")
    with contextlib.redirect_stdout(io.StringIO()):
        train(load_arguments(recipe, [item.format(data=data) for item in items]))
    return os.path.join(output, "checkpoint-final")


def cell(values: list[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="output/demo/checkpoint-final", help="the demo's model (%(default)s)")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    before = os.path.abspath(options.model)
    figures: dict[str, list[dict[str, float]]] = {}

    def note(name: str, seed: int, since: float, found: dict[str, float]) -> None:
        figures.setdefault(name, []).append({**found, "seconds": time.perf_counter() - since})
        print(name, "seed", seed, {key: round(value, 1) for key, value in figures[name][-1].items()}, flush=True)

    with tempfile.TemporaryDirectory() as data:
        write_data(data)
        choose, test = read(data, "choose"), read(data, "test")
        note("before", 0, time.perf_counter(), measure(*load_checkpoint(before), test))
        for seed in SEEDS:
            for name, overrides in METHODS.items():
                start = time.perf_counter()
                after = tune(before, data, seed, os.path.join(data, f"{name} {seed}"), overrides)
                note(name, seed, start, measure(*load_checkpoint(after), test))
                if name in BLENDED:
                    start = time.perf_counter()
                    ends = load_ends(before, after)
                    alpha = measure_blends(ends, *choose, [i / 10 for i in range(11)]).best.alpha
                    found = measure(ends.at(alpha), ends.processor, test)
                    note(f"{name}, blended", seed, start, {**found, "alpha": alpha})
    rows = [[name, *(cell([r[key] for r in runs if key in r]) for key in COLUMNS)] for name, runs in figures.items()]
    print("\n" + markdown_table(["", *COLUMNS], rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
