"""Speed of embedding, compared with a bare loop of the tower's forward on the same batches.

    python benchmarks/inference_bench.py
    python benchmarks/inference_bench.py --model output/demo/checkpoint-final --out inference_bench.json

Without --model the towers have the published sizes (ViT-B/32 at 224 px and BERT-base) and random weights.
embed: embed_images from JPEG files of 400 px and embed_texts from strings, compared with forward passes of prepared
  batches (bare). The two alternate; medians are reported. On a busy machine, compare the CPU seconds, which are
  those of the embedding process alone. padding: share of padding tokens in the text batches.
compare: the best 5 of 10,000 images x 1,000 texts in both directions, from embeddings; growth of the peak memory.
ranks: text -> image ranks of 1,000 queries in a gallery of 1,000,000 images.
help: `--help` of every script, fastest of three.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="BertCLIP folder")
    parser.add_argument("--parts", nargs="+", default=["help", "embed", "compare", "ranks"])
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--num_texts", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file with the results")
    args = parser.parse_args()

    results = {
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "model": args.model or "random, published",
    }
    for part in args.parts:
        bench = {"help": bench_help, "embed": bench_embed, "compare": bench_compare, "ranks": bench_ranks}[part]
        results[part] = bench(args)
        print(part, json.dumps(results[part], indent=2), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=2) + "\n")


def bench_help(args) -> dict:
    def seconds(script: Path) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, str(script), "--help"], check=True, stdout=subprocess.DEVNULL)
        return round(time.perf_counter() - start, 3)

    return {script.name: min(seconds(script) for _ in range(3)) for script in sorted(ROOT.glob("*.py"))}


def bench_embed(args) -> dict:
    from component.embedding import embed_images, embed_texts

    model, processor = load(args.model)
    with tempfile.TemporaryDirectory() as folder:
        images, texts = make_images(folder, args.num_images), read_texts(args.num_texts)
        image_batches, text_batches, padding = make_batches(processor, images, texts, args.batch_size)
        ways = {
            "image": (
                lambda: forward(model.get_image_features, image_batches),
                lambda: embed_images(model, processor, images, args.batch_size),
            ),
            "text": (
                lambda: forward(model.get_text_features, text_batches),
                lambda: embed_texts(model, processor, texts, args.batch_size),
            ),
        }
        results = {"device": str(model.device), "batch_size": args.batch_size}
        for kind, (bare, ours) in ways.items():
            count = {"image": len(images), "text": len(texts)}[kind]
            results[kind] = {"count": count, **take_turns(bare, ours, args.rounds)}
        results["text"]["padding_percent"] = round(100 * padding, 2)
    return results


def take_turns(bare, ours, rounds: int) -> dict:
    """Medians of both ways, in wall seconds and in CPU seconds of this process, without decoding workers."""
    bare()  # the first pass allocates
    wall, cpu = {bare: [], ours: []}, {bare: [], ours: []}
    for _ in range(rounds):
        for way in (bare, ours):
            start, start_cpu = time.perf_counter(), time.process_time()
            way()
            wall[way].append(time.perf_counter() - start)
            cpu[way].append(time.process_time() - start_cpu)
    result = {}
    for name, seconds in (("wall", wall), ("cpu", cpu)):
        medians = [statistics.median(seconds[way]) for way in (bare, ours)]
        result[name] = {
            "bare_seconds": round(medians[0], 2),
            "our_seconds": round(medians[1], 2),
            "slower_percent": round(100 * (medians[1] / medians[0] - 1), 1),
        }
    return result


def load(path: str | None):
    """The checkpoint, or towers of the published sizes with random weights."""
    import torch
    from transformers import BertConfig, BertTokenizerFast, CLIPProcessor, CLIPVisionConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from component.checkpoint import load_checkpoint
    from component.configuration import BertCLIPConfig
    from component.model import BertCLIPModel

    if path:
        return load_checkpoint(path)
    config = BertCLIPConfig(text_config=BertConfig(), vision_config=CLIPVisionConfig(patch_size=32))
    tokenizer = BertTokenizerFast.from_pretrained(ROOT / "data/demo/bert-emoji", model_max_length=512)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return BertCLIPModel(config).eval().to(device), CLIPProcessor(CLIPImageProcessorPil(), tokenizer)


def make_images(folder: str, count: int) -> list[str]:
    """Different JPEGs of 400 x 300 px, cut from the test photographs."""
    from PIL import Image

    photos = [Image.open(path).convert("RGB").resize((480, 360)) for path in ROOT.glob("images/test/photo_*.jpg")]
    paths = [os.path.join(folder, f"{number}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        left, top = number % 80, number // 80 % 60
        photos[number % len(photos)].crop((left, top, left + 400, top + 300)).save(path, quality=90)
    return paths


def read_texts(count: int) -> list[str]:
    from component.pairs.table import read_table

    texts = next(read_table(str(ROOT / "data/demo/train.csv")))["text"].tolist()
    return [texts[i % len(texts)] for i in range(count)]


def make_batches(processor, images, texts, batch_size):
    """The inputs of the towers, in memory, and the share of padding in the text batches."""
    from component.embedding import text_batches
    from component.image.load import load_image

    image_batches = [
        processor.image_processor(
            [load_image(path) for path in images[start : start + batch_size]], return_tensors="pt"
        )
        for start in range(0, len(images), batch_size)
    ]
    batches = [batch for _, batch in text_batches(processor, texts, batch_size)]
    cells = sum(batch["attention_mask"].numel() for batch in batches)
    used = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return image_batches, batches, 1 - used / cells


def forward(features, batches) -> None:
    import torch

    with torch.inference_mode():
        for batch in batches:
            features(**{key: tensor.to(features.__self__.device) for key, tensor in batch.items()})
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def random_embeds(kind: str, count: int):
    import torch
    import torch.nn.functional as F

    from component.embedding import Embedded

    names = [f"{kind} {number}" for number in range(count)]
    return Embedded(kind, names, F.normalize(torch.randn(count, 512), dim=1), list(range(count)))


def bench_compare(args) -> dict:
    from component.similarity import Similarity

    similarity = Similarity(random_embeds("image", 10_000), random_embeds("text", 1_000), 100.0)
    before, start = peak_mb(), time.perf_counter()
    matches = sum(len(best) for way in (similarity, similarity.transposed()) for best in way.best(5))
    return {
        "matches": matches,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_grew_mb": round(peak_mb() - before),
    }


def bench_ranks(args) -> dict:
    import torch

    from component.metrics import retrieval_ranks

    queries, gallery = random_embeds("text", 1_000).embeds, random_embeds("image", 1_000_000).embeds
    before, start = peak_mb(), time.perf_counter()
    retrieval_ranks(queries, gallery, torch.arange(1_000), torch.arange(1_000))
    seconds = round(time.perf_counter() - start, 1)
    return {"queries": 1_000, "gallery": 1_000_000, "seconds": seconds, "peak_grew_mb": round(peak_mb() - before)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
