"""What small towers keep of their teacher's recall on the demo data, with distillation and without.

python benchmarks/distill_bench.py [--seeds 1 2 3] [--json figures.json]

The teacher of each seed is the demo, `train_args/train_demo.json`. Its students are trained with its settings:

- "text": a new BERT of width 64 next to the teacher's image half, which is locked. Queries of the student are answered
  on the teacher's gallery.
- "image": the first and the last layer of the teacher's image tower, next to its text tower, which is locked.

Each is trained with `distill_from` and, for comparison, without. Recall is text → image, in percent, of the names
(test.csv) and of the held-out keywords (test_keywords.csv). "share" is the tower's number of parameters next to that
of the teacher's tower, "ms" the CPU time of one query (or image) alone, with one thread.
"""

import argparse
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from demo_seeds import DEMO, SEEDS, evaluate, run, spread
from transformers import BertConfig, BertModel, BertTokenizerFast

from component.checkpoint import load_checkpoint
from component.embedding import embed_images, embed_texts
from component.export.fewer_layers import save_fewer_layers
from component.report.text_table import markdown_table

COLUMNS = ("names R@1", "names R@10", "keywords R@1", "keywords R@10", "share", "ms")
QUERIES = ("小狗", "红色的圆", "一张生日蛋糕的图片", "下雨天的伞")
TIMED = 50  # of each query


def train(output: str, seed: int, *items: str) -> str:
    """Train with the demo's settings and return the checkpoint."""
    command = ["train_clip.py", "--train_args_file", "train_args/train_demo.json"]
    for item in (f"seed={seed}", f"output_dir={output}", *items):
        command += ["--set", item]
    run(*command)
    return f"{output}/checkpoint-final"


def small_bert(folder: str, width: int = 64) -> str:
    """Write a BERT with the demo's tokenizer and random weights."""
    source = os.path.join(DEMO, "bert-emoji")
    sizes = {"hidden_size": width, "num_attention_heads": width // 32, "intermediate_size": 4 * width}
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(source, **sizes)).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(source).save_pretrained(folder)
    return folder


def measure(model_path: str, scratch: str, teacher_path: str, side: str) -> dict[str, float]:
    """Recall, and size and speed of one tower."""
    found = {}
    for kind, table in (("names", "test"), ("keywords", "test_keywords")):
        metrics = evaluate(model_path, f"{DEMO}/{table}.csv", f"{scratch}/evaluation")
        found |= {f"{kind} R@{k}": 100 * metrics[f"text_to_image_recall@{k}"] for k in (1, 10)}
    model, processor = load_checkpoint(model_path)
    tower = "text_model" if side == "text" else "vision_model"
    sizes = [getattr(one, tower).num_parameters() for one in (model, load_checkpoint(teacher_path)[0])]
    found["share"] = 100 * sizes[0] / sizes[1]
    images = [os.path.join(DEMO, "images", "noto", name) for name in sorted(os.listdir(f"{DEMO}/images/noto"))[:4]]
    torch.set_num_threads(1)

    def once() -> None:
        for text, image in zip(QUERIES, images, strict=True):
            if side == "text":
                embed_texts(model.cpu(), processor, [text])
            else:
                embed_images(model.cpu(), processor, [image], num_workers=0)

    once()
    start = time.process_time()
    for _ in range(TIMED):
        once()
    found["ms"] = 1000 * (time.process_time() - start) / TIMED / len(QUERIES)
    return found


def students(teacher: str, bert: str, shrunken: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name → the side that is small, and what differs from the demo's settings."""
    text = (f"clip_pretrain_path={teacher}", f"bert_pretrain_path={bert}", "freeze_visual_projection=true")
    image = (f"clip_pretrain_path={shrunken}", "load_from_bert_clip=true", "freeze_text=true", "freeze_vision=false")
    taught = (f"distill_from={teacher}",)
    common = ("learning_rates=null", "learning_rate=2e-3")
    return {
        "text": ("text", (*text, *common, *taught)),
        "text, not distilled": ("text", (*text, *common)),
        "image": ("image", (*image, *common, *taught)),
        "image, not distilled": ("image", (*image, *common)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bert = small_bert(f"{scratch}/bert")
        for seed in options.seeds:
            teacher, shrunken = train(f"{scratch}/{seed}/teacher", seed), f"{scratch}/{seed}/shrunken"
            save_fewer_layers(teacher, shrunken, image_layers=[0, 3])
            models = {f"teacher, {side}": (side, teacher) for side in ("text", "image")}
            for name, (side, items) in students(teacher, bert, shrunken).items():
                models[name] = (side, train(f"{scratch}/{seed}/{name}", seed, *items))
            for name, (side, path) in models.items():
                found = measure(path, scratch, teacher, side)
                figures.setdefault(name, []).append(found)
                print(name, "seed", seed, {key: round(value, 2) for key, value in found.items()}, flush=True)
    if len(options.seeds) > 1:
        rows = [[name, *(spread(runs, key) for key in COLUMNS)] for name, runs in figures.items()]
        print("\n" + markdown_table(["", *COLUMNS], rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
