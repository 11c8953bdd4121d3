"""Pairs per second compared with the trainers that people would use instead, on the same JPEGs and captions.

    python -m venv ~/venv-open-clip && ~/venv-open-clip/bin/pip install open_clip_torch[training]==3.3.0 transformers
    python benchmarks/peer_bench.py --open_clip_python ~/venv-open-clip/bin/python [--out peer_bench.json]

open_clip      its own trainer (open_clip_train.main) with a locked image tower; in a separate environment, because it
               needs torchvision
transformers   VisionTextDualEncoderModel with a plain Trainer, the image tower frozen, texts padded to the longest
               (its example run_clip.py pads to max_length)
sentence-transformers
               the same model and SentenceTransformerTrainer, MultipleNegativesRankingLoss in both directions, the
               image tower frozen; left out unless this package (6 or later) and `datasets` are installed
ours           train_clip.py's trainer, with and without the feature cache

All use towers of the same size with random weights, the same precision, AdamW, and gradient clipping at 1. The
trainers take turns, `--rounds` times, and the medians are reported. Differences: open_clip pads each text to
--context_length, has two weight decay groups and a projection without pooler, and uses torchvision's transforms.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from train_bench import DEVICE, DTYPES, PRESETS, WARMUP_STEPS, Bench, PublishedDataset
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from component.hub.sentence_transformers import write_sentence_transformers

PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}  # ours → open_clip's name
LAUNCHER = """
import ctypes, importlib.metadata, importlib.util, json, sys
import torch

(folder,) = importlib.util.find_spec("torchvision").submodule_search_locations
try:
    ctypes.CDLL(f"{folder}/_C.so")
except OSError:  # built for another device; training uses none of its operators, but the import needs these two names
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip
from open_clip_train.main import main

names = ("open_clip_torch", "torch", "torchvision", "transformers")
print(json.dumps({name: importlib.metadata.version(name) for name in names}), flush=True)
open_clip.add_model_config("peer.json")
main(sys.argv[1:])
"""


def main() -> None:
    options = parse()
    results = measure(options)
    for name, value in cells(results):
        print(f"{name:<44} {value:>10}")
    print(results["versions"])
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open_clip_python", help="Python of that environment; without it, open_clip is skipped")
    parser.add_argument(
        "--open_clip_options",
        default="",
        help="further options of its trainer, such as those that a newer release has",
    )
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--batch_size", type=int, help="pairs per step (default: set by the preset)")
    parser.add_argument("--steps", type=int, default=4, help="per trainer and round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--context_length", type=int, default=64, help="tokens that open_clip pads each text to")
    parser.add_argument("--lognormal", action="store_true", help="lognormal caption lengths")
    parser.add_argument("--out", help="JSON file with the results")
    parser.set_defaults(group_size=None, busy=False)
    options = parser.parse_args(arguments)
    options.batch_size = options.batch_size or PRESETS[options.preset][-1]
    return options


def measure(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(options, Path(folder))
        peers.fill_cache()
        rounds = [peers.round() for _ in range(options.rounds)]
    return {
        **vars(options),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {**peers.versions, "ours": {name: importlib.metadata.version(name) for name in OURS}},
        "pairs_per_second": {name: statistics.median(speeds[name] for speeds in rounds) for name in rounds[0]},
    }


SENTENCE_TRANSFORMERS = all(map(importlib.util.find_spec, ("sentence_transformers", "datasets")))
OURS = ("torch", "transformers", *(["sentence_transformers"] if SENTENCE_TRANSFORMERS else []))


def cells(results: dict) -> Iterator[tuple[str, str]]:
    """Rows of a table: name and figure."""
    speeds = results["pairs_per_second"]
    for name, speed in speeds.items():
        yield f"{name}, pairs/s", f"{speed:.1f}"
    for name in speeds:
        if not name.startswith("ours"):
            yield f"ours / {name}", f"{speeds['ours'] / speeds[name]:.2f}"


class Peers(Bench):
    """The data of train_bench and the trainers, which take turns."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        super().__init__(options, folder)
        self.versions: dict[str, dict[str, str]] = {}
        layers, width, heads, _ = PRESETS[options.preset]
        self.tower = dict(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
        )
        self.bert_config = BertConfig(vocab_size=len(self.processor.tokenizer), **self.tower)
        if options.open_clip_python:
            self.write_open_clip_files()

    def round(self) -> dict[str, float]:
        """Trainer → pairs per second."""
        return {
            **({"open_clip": self.open_clip()} if self.options.open_clip_python else {}),
            "transformers": self.dual_encoder(),
            **({"sentence-transformers": self.sentence_transformers()} if SENTENCE_TRANSFORMERS else {}),
            "ours without the cache": self.ours("c", self.decoded),
            "ours": self.ours("b", self.cached),
        }

    def dual_encoder(self) -> float:
        model = self.dual_encoder_model()
        model.vision_model.requires_grad_(False)
        arguments = TrainingArguments(remove_unused_columns=False, **self.peer_arguments())
        return self.timed(Trainer(model, arguments, self.collate_texts, PublishedDataset(self)))[0]

    def dual_encoder_model(self) -> VisionTextDualEncoderModel:
        vision = CLIPVisionConfig(image_size=224, patch_size=32, **self.tower)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, self.bert_config)
        torch.manual_seed(0)
        return VisionTextDualEncoderModel(config)

    def sentence_transformers(self) -> float:
        from datasets import Dataset, Image
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
            losses,
        )

        folder = str(self.folder / "sentence_transformers")
        if not os.path.isdir(folder):
            self.dual_encoder_model().save_pretrained(folder)
            VisionTextDualEncoderProcessor(self.processor.image_processor, self.processor.tokenizer).save_pretrained(
                folder
            )
            write_sentence_transformers(folder, "pooler_output")
        model = SentenceTransformer(folder, device=DEVICE)
        model[0].model.vision_model.requires_grad_(False)
        images = [str(self.folder / f"{index}.jpg") for index in range(self.num_pairs)]
        pairs = Dataset.from_dict({"text": self.captions, "image": images}).cast_column("image", Image())
        arguments = SentenceTransformerTrainingArguments(**self.peer_arguments())
        directions = ("query_to_doc", "doc_to_query")  # as CLIP's loss
        loss = losses.MultipleNegativesRankingLoss(model, directions=directions, partition_mode="per_direction")
        return self.timed(SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=loss))[0]

    def peer_arguments(self) -> dict:
        precision = self.options.precision
        return dict(bf16=precision == "bf16", fp16=precision == "fp16", **self.common_arguments())

    def open_clip(self) -> float:
        """Pairs per second from its own log of each step, which includes loading data and the optimizer."""
        done = subprocess.run(
            [self.options.open_clip_python, "-c", LAUNCHER, *self.open_clip_arguments()],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        speeds = [float(speed) for speed in re.findall(r"Batch \(t\): \S+ (\S+)/s, ", done.stdout)]
        if done.returncode or len(speeds) != self.options.steps + WARMUP_STEPS:
            sys.exit(f"open_clip failed:\n{done.stdout[-3000:]}")
        self.versions["open_clip"] = json.loads(re.search(r"^{.*}$", done.stdout, re.MULTILINE)[0])
        return self.options.steps / sum(1 / speed for speed in speeds[WARMUP_STEPS:])

    def write_open_clip_files(self) -> None:
        """Write a BERT, the config of a model that uses it, and the table."""
        bert = self.folder / "bert"
        BertModel(self.bert_config).save_pretrained(bert)  # open_clip requires weights
        self.processor.tokenizer.save_pretrained(bert)
        layers, width, heads, _ = PRESETS[self.options.preset]
        vision = dict(image_size=224, layers=layers, width=width, head_width=width // heads, patch_size=32)
        text = dict(hf_model_name=str(bert), hf_tokenizer_name=str(bert), hf_proj_type="linear")
        text |= dict(hf_pooler_type="cls_pooler", context_length=self.options.context_length)
        model = dict(embed_dim=512, vision_cfg=vision, text_cfg=text)
        (self.folder / "peer.json").write_text(json.dumps(model))
        rows = (f"{index}.jpg\t{caption}\n" for index, caption in enumerate(self.captions))
        (self.folder / "peer.tsv").write_text("filepath\ttitle\n" + "".join(rows), encoding="utf-8")

    def open_clip_arguments(self) -> list[str]:
        options = {
            "model": "peer",
            "precision": PRECISIONS[self.options.precision],
            "device": DEVICE,
            "dataset-type": "csv",
            "train-data": "peer.tsv",
            "batch-size": self.options.batch_size,
            "workers": self.options.workers,
            "epochs": 1,
            "lr": 5e-5,
            "warmup": 0,
            "grad-clip-norm": 1,
            "log-every-n-steps": 1,
            "logs": "none",  # nor checkpoints
        }
        options = [f"--{name}={value}" for name, value in options.items()]
        return ["--lock-image", *options, *self.options.open_clip_options.split()]


if __name__ == "__main__":
    main()
