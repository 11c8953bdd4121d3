"""What small towers keep of their teacher's recall on the demo data, with distillation and without.

python benchmarks/distill_bench.py [--seeds 1 2 3] [--only_distilled] [--node_modules DIR] [--json figures.json]

The teacher of each seed is the demo, `train_args/train_demo.json`. Its students are trained with its settings:

- "text": a text tower of one layer and half the teacher's width, next to the teacher's image half, which is locked.
  Queries of the student are answered on the teacher's gallery.
- "image": the first and the last layer of the teacher's image tower, next to its text tower, which is locked.

(The word embeddings are 45% of the demo's text tower: fewer layers alone would not make it small. A small tower trains
for more epochs, each of which is cheaper.)

Each is trained with `distill_from` and, for comparison, without. Recall is text → image, in percent, of the names
(test.csv) and of the held-out keywords (test_keywords.csv). "share" is the tower's number of parameters next to that
of the teacher's; "ms alone" and "ms of 200" are the CPU time per query (or image), one at a time and 200 at once, with
one thread. A text alone is embedded as `search_image.py query` does it. With `--node_modules`, where Node finds
@huggingface/transformers: "int8 MB" is the size of text_model_quantized.onnx, "int8 R@1" is that of the names when
transformers.js embeds them with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch
from demo_seeds import DEMO, SEEDS, evaluate, run, spread

from component.checkpoint import load_checkpoint, load_identified
from component.embedded import Embedded
from component.embedding import embed_images, embed_texts
from component.evaluation.retrieval import rank_pairs
from component.evaluation.retrieval_data import read_retrieval_data
from component.export.smaller import save_smaller
from component.numpy_text_tower import open_text_tower
from component.report.text_table import markdown_table

COLUMNS = ("names R@1", "names R@10", "keywords R@1", "keywords R@10", "share", "ms alone", "ms of 200")
INT8_COLUMNS = ("int8 MB", "int8 R@1")
IN_NODE = """
    const { AutoTokenizer, CLIPTextModelWithProjection } = require('@huggingface/transformers');
    (async (folder, texts) => {
        const tokenizer = await AutoTokenizer.from_pretrained(folder);
        const model = await CLIPTextModelWithProjection.from_pretrained(folder, { dtype: 'q8' });
        const embeds = [];
        for (const text of texts) embeds.push(...(await model(await tokenizer(text))).text_embeds.tolist());
        console.log(JSON.stringify(embeds));
    })(process.argv[1], JSON.parse(require('fs').readFileSync(0, 'utf8')));
"""
QUERIES = ("小狗", "红色的圆", "一张生日蛋糕的图片", "下雨天的伞")
TIMED = 50  # of each query and image


def train(output: str, seed: int, *items: str) -> str:
    """Train with the demo's settings and return the checkpoint."""
    command = ["train_clip.py", "--train_args_file", "train_args/train_demo.json"]
    for item in (f"seed={seed}", f"output_dir={output}", *items):
        command += ["--set", item]
    run(*command)
    return f"{output}/checkpoint-final"


def measure(model_path: str, scratch: str, teacher_path: str, side: str) -> dict[str, float]:
    """Recall, and size and speed of one tower."""
    found = {}
    for kind, table in (("names", "test"), ("keywords", "test_keywords")):
        metrics = evaluate(model_path, f"{DEMO}/{table}.csv", tempfile.mkdtemp(dir=scratch))
        found |= {f"{kind} R@{k}": 100 * metrics[f"text_to_image_recall@{k}"] for k in (1, 10)}
    model, processor, _ = load_identified(model_path)  # what `open_text_tower` needs to know
    tower = "text_model" if side == "text" else "vision_model"
    sizes = [getattr(one, tower).num_parameters() for one in (model, load_checkpoint(teacher_path)[0])]
    found["share"] = 100 * sizes[0] / sizes[1]
    images = [f"{DEMO}/images/noto/{name}" for name in sorted(os.listdir(f"{DEMO}/images/noto"))[: len(QUERIES)]]
    items = TIMED * (list(QUERIES) if side == "text" else images)
    torch.set_num_threads(1)
    model.cpu()
    if side == "text":
        alone, together = open_text_tower(model_path).embed_texts, partial(embed_texts, model, processor)
    else:
        alone = together = partial(embed_images, model, processor, num_workers=0)
    for name, embed, calls in (("ms alone", alone, [[item] for item in items]), ("ms of 200", together, [items])):
        embed(items[:1])
        start = time.process_time()
        for call in calls:
            embed(call)
        found[name] = 1000 * (time.process_time() - start) / len(items)
    return found


def in_transformers_js(model_path: str, scratch: str, teacher_path: str, node_modules: str) -> dict[str, float]:
    """Size and recall of the text tower in int8, on the teacher's images."""
    folder = tempfile.mkdtemp(dir=scratch)
    run("export_model.py", "--model", model_path, "--format", "onnx", "--int8", "--output", folder)
    data = read_retrieval_data(f"{DEMO}/test.csv", f"{DEMO}/images")
    environment = {**os.environ, "NODE_PATH": node_modules}
    embeds = subprocess.check_output(
        ["node", "-e", IN_NODE, folder], input=json.dumps(data.texts), text=True, env=environment
    )
    texts = Embedded("text", data.texts, torch.tensor(json.loads(embeds)), list(range(len(data.texts))))
    metrics = rank_pairs(data, embed_images(*load_checkpoint(teacher_path), data.images), texts).metrics
    size = os.path.getsize(f"{folder}/onnx/text_model_quantized.onnx")
    return {"int8 MB": size / 1e6, "int8 R@1": 100 * metrics["text_to_image_recall@1"]}


def students(teacher: str, folder: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name → the side that is small, and what differs from the demo's settings."""
    starts = {side: f"{folder}/start-{side}" for side in ("text", "image")}
    save_smaller(teacher, starts["text"], text_layers=[1], text_width=96)
    save_smaller(teacher, starts["image"], image_layers=[0, 3])
    start = {
        side: (f"clip_pretrain_path={path}", "load_from_bert_clip=true", "learning_rates=null")
        for side, path in starts.items()
    }
    text = (*start["text"], "freeze_visual_projection=true", "num_train_epochs=80", "learning_rate=3e-3")
    image = (*start["image"], "freeze_vision=false", "freeze_text=true", "text_templates=null", "text_noise=0")
    image = (*image, "num_train_epochs=40", "learning_rate=2e-3")
    taught = f"distill_from={teacher}"
    return {
        "text": ("text", (*text, taught)),
        "text, not distilled": ("text", text),
        "image": ("image", (*image, taught)),
        "image, not distilled": ("image", image),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only_distilled", action="store_true", help="leave out the towers without a teacher")
    parser.add_argument("--node_modules", help="folder with @huggingface/transformers; measures int8 there too")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            teacher = train(f"{scratch}/{seed}/teacher", seed)
            models = {f"teacher, {side}": (side, None) for side in ("text", "image")}
            models |= students(teacher, f"{scratch}/{seed}")
            for name, (side, items) in models.items():
                if options.only_distilled and name.endswith("not distilled"):
                    continue
                path = teacher if items is None else train(f"{scratch}/{seed}/{name}", seed, *items)
                found = measure(path, scratch, teacher, side)
                if options.node_modules and side == "text":
                    found |= in_transformers_js(path, scratch, teacher, options.node_modules)
                figures.setdefault(name, []).append(found)
                print(name, "seed", seed, {key: round(value, 2) for key, value in found.items()}, flush=True)
    if len(options.seeds) > 1:
        columns = [*COLUMNS, *(INT8_COLUMNS if options.node_modules else ())]
        rows = [
            [name, *(spread(runs, key) if key in runs[0] else "" for key in columns)] for name, runs in figures.items()
        ]
        print("\n" + markdown_table(["", *columns], rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
