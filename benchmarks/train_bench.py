"""Training speed in pairs per second, compared with the published loop and with the bare text tower.

    python benchmarks/train_bench.py --preset tiny|small|base [--precision bf16] [--out train_bench.json]

a  published loop: Pillow and the HF image processor for each image, ViT forward in every step, HF Trainer
b  ours with the feature cache
c  ours without it
d  only forward and backward of the text tower on the prepared tensors of b's batches: the upper bound of LiT
"one group": text_group_size is the batch size, so all texts are padded to the longest; --group_size adds another.
"changed texts": text_templates and text_noise, of b; half of the captions get three more tokens.

All use the same towers (random weights), generated JPEGs of 400 x 300, and generated captions of 5 to 40 characters or
of lognormal length (20 on average). The loops take turns, `--rounds` times, and the medians are reported. a runs in
the precision of the published recipe: fp16 on a GPU, else fp32. base is ViT-B/32 with BERT-base; for it, the time of
the published recipe is extrapolated.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import PRESETS, make_data, make_model, make_processor

from component.argument import CLIPTrainingArguments
from component.dataset import PairDataset, Pairs
from component.model import BertCLIPModel
from component.pairs.templates import read_templates
from component.pairs.text_augmentation import TextAugmentation
from component.trainer import CLIPTrainer
from component.training.locked_towers import cache_images

RECIPE_STEPS, RECIPE_BATCH, RECIPE_IMAGES = 73_100, 768, 1_400_000
WARMUP_STEPS, COMPILING_STEPS = 2, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    options = parse()
    results = measure(options)
    report(results)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch_size", type=int, help="pairs per step (default: set by the preset)")
    parser.add_argument("--group_size", type=int, help="a text_group_size to compare b and d with")
    parser.add_argument("--steps", type=int, default=8, help="per loop and round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lognormal", action="store_true", help="lognormal caption lengths")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, for a, b and c")
    parser.add_argument("--precision", choices=DTYPES, help="of b, c and d (default: bf16 on a GPU, else fp32)")
    parser.add_argument(
        "--busy", action="store_true", help="measure CPU seconds of this process; for a shared CPU, with 1 thread"
    )
    parser.add_argument("--compile", metavar="BACKEND", help="also b with torch.compile and this backend (inductor)")
    parser.add_argument("--out", help="JSON file with the results")
    options = parser.parse_args(arguments)
    options.batch_size = options.batch_size or PRESETS[options.preset][-1]
    options.precision = options.precision or ("bf16" if DEVICE == "cuda" else "fp32")
    return options


def measure(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        peak = bench.matmul_peak()
        caching_seconds = bench.fill_cache()
        rounds = [bench.round() for _ in range(options.rounds)]
        speeds = {name: statistics.median(speeds[name] for speeds in rounds) for name in rounds[0]}
        if options.compile:
            speeds["b, compiled"], compiling_seconds = bench.compiled()
    results = {
        **vars(options),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "pairs_per_second": speeds,
        "b / d": speeds["b"] / speeds["d"],
        "b / d, one group": speeds["b, one group"] / speeds["d, one group"],
        "b / a": speeds["b"] / speeds["a"],
        "b / a, one group": speeds["b, one group"] / speeds["a"],
        "c / a": speeds["c"] / speeds["a"],
        "b, changed texts / b": speeds["b, changed texts"] / speeds["b"],
        "tokens, changed texts / b": bench.tokens("b, changed texts") / bench.tokens("b"),
        **{f"padding, {name}": bench.padding(name) for name in bench.batches},
        "cost of a group, tokens": bench.group_cost(),
        "b, host ms a step": bench.host_ms_of["b"],
        "images_cached_per_second": bench.num_pairs / caching_seconds,
        "d, share of the matmul peak": bench.text_flops_per_pair("b") * speeds["d"] / peak,
        "matmul peak, TFLOP/s": peak / 1e12,
    }
    if options.preset == "base":
        seconds = RECIPE_STEPS * RECIPE_BATCH / speeds["b"] + RECIPE_IMAGES / bench.num_pairs * caching_seconds
        results["published recipe extrapolated, hours"] = seconds / 3600
    if options.compile:
        results["b, compiled / b"] = speeds["b, compiled"] / speeds["b"]
        results["compiling, seconds"] = compiling_seconds
    return results


class Bench:
    """The data, the towers and the loops of one run."""

    def __init__(self, options, folder: Path):
        self.options, self.folder = options, folder
        self.num_pairs = options.batch_size * (options.steps + WARMUP_STEPS)
        self.num_counted = options.batch_size * options.steps
        self.captions = make_data(folder, self.num_pairs, lognormal=options.lognormal)
        self.batches: dict[str, list] = {}
        self.host_ms_of: dict[str, float] = {}  # loop on the cache → CPU time of this process in a step
        self.processor = make_processor(folder)
        self.decoded = PairDataset(str(folder / "train.csv"), str(folder), self.processor, max_seq_length=100)

    def model(self) -> BertCLIPModel:
        return make_model(self.options.preset)

    def arguments(self, **keys) -> CLIPTrainingArguments:
        return CLIPTrainingArguments(
            clip_pretrain_path="none",
            bert_pretrain_path="none",
            train_file=str(self.folder / "train.csv"),
            image_path=str(self.folder),
            image_feature_cache=str(self.folder / "cache"),
            bf16=self.options.precision == "bf16",
            fp16=self.options.precision == "fp16",
            **{**self.common_arguments(), **keys},
        )

    def common_arguments(self) -> dict:
        return dict(
            output_dir=str(self.folder / "output"),
            per_device_train_batch_size=self.options.batch_size,
            max_steps=self.options.steps + WARMUP_STEPS,
            dataloader_num_workers=self.options.workers,
            learning_rate=5e-5,
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=DEVICE == "cpu",
        )

    def fill_cache(self) -> float:
        """Fill the feature cache and return the seconds that it takes."""
        start = self.now()
        (self.cached,) = cache_images(self.arguments(), self.model(), self.decoded)
        templates = read_templates(["来一张{}", "{}的图片"])
        augmentation = TextAugmentation(self.processor.tokenizer, 100, templates, noise=0.1)
        self.augmented = Pairs(self.cached.table, self.cached.images, augmentation)
        return self.now() - start

    def round(self) -> dict[str, float]:
        """Loop → pairs per second."""
        speeds, size = {"a": self.published(), "c": self.ours("c", self.decoded)}, self.options.group_size
        groups = {"": None, ", one group": self.options.batch_size, **({f", groups of {size}": size} if size else {})}
        for name, group_size in groups.items():
            speeds[f"b{name}"] = self.ours(f"b{name}", self.cached, text_group_size=group_size)
            self.text_tower(self.batches[f"b{name}"][:WARMUP_STEPS])
            speeds[f"d{name}"] = self.num_counted / self.text_tower(self.batches[f"b{name}"])
        speeds["b, changed texts"] = self.ours("b, changed texts", self.augmented)
        return speeds

    def published(self) -> float:
        model = self.model().train()
        arguments = TrainingArguments(
            optim="adamw_torch", fp16=DEVICE == "cuda", remove_unused_columns=False, **self.common_arguments()
        )
        return self.timed(Trainer(model, arguments, self.collate_texts, PublishedDataset(self)))[0]

    def collate_texts(self, examples: list[dict]) -> dict:
        texts = [example["text"] for example in examples]
        inputs = self.processor.tokenizer(texts, max_length=100, truncation=True, padding=True, return_tensors="pt")
        pixel_values = torch.cat([example["pixel_values"] for example in examples])
        return {**inputs, "pixel_values": pixel_values, "return_loss": True}

    def ours(self, name: str, dataset: Pairs, **keys) -> float:
        trainer = self.trainer(dataset, **keys)
        speed, _ = self.timed(trainer)
        if dataset is not self.decoded:
            self.host_ms_of[name] = self.host_ms
            self.batches[name] = [
                [(input_ids.to(DEVICE), mask.to(DEVICE)) for input_ids, mask in groups]
                for groups in trainer.batches[WARMUP_STEPS:]
            ]
        return speed

    def compiled(self) -> tuple[float, float]:
        """b with torch.compile: pairs per second, and the seconds of the steps that compile."""
        trainer = self.trainer(
            self.cached,
            torch_compile=True,
            torch_compile_backend=self.options.compile,
            max_steps=self.options.steps + COMPILING_STEPS,
        )
        return self.timed(trainer, COMPILING_STEPS)

    def trainer(self, dataset: Pairs, **keys) -> "RecordingTrainer":
        return RecordingTrainer(
            model=self.model(),
            args=self.arguments(**keys),
            train_dataset=dataset,
            processing_class=self.processor,
        )

    def timed(self, trainer: Trainer, warmup_steps: int = WARMUP_STEPS) -> tuple[float, float]:
        """Pairs per second after the warm-up, and the seconds of the warm-up."""
        clock = Clock(self.now, warmup_steps)
        trainer.add_callback(clock)
        trainer.train()
        self.host_ms = 1000 * clock.host_seconds / self.options.steps
        return self.num_counted / clock.seconds, clock.warmup_seconds

    def text_tower(self, batches: list) -> float:
        """Seconds of forward and backward over batches of groups."""
        dtype = DTYPES[self.options.precision]
        tower = self.model().text_model.to(DEVICE).train()

        def step(groups):
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                outputs = [tower(input_ids, attention_mask=mask).pooler_output for input_ids, mask in groups]
            torch.cat(outputs).float().sum().backward()
            tower.zero_grad()

        start = self.now()
        for batch in batches:
            step(batch)
        return self.now() - start

    def group_cost(self, groups: int = 8, width: int = 24) -> float:
        """Fixed cost of a group in the text tower, in tokens, from a batch in one group and the same in several."""
        pairs = self.options.batch_size
        whole = torch.full((pairs, width), 5, device=DEVICE), torch.ones(pairs, width, dtype=torch.long, device=DEVICE)
        parts = list(zip(*(tensor.chunk(groups) for tensor in whole), strict=True))
        self.text_tower([[whole], parts])
        rounds = [[self.text_tower([batch]) for batch in ([whole], parts)] for _ in range(2 * self.options.steps)]
        one, several = map(statistics.median, zip(*rounds, strict=True))
        group = (several - one) / (len(parts) - 1)
        return group / (one - group) * whole[0].numel()

    def now(self) -> float:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.options.busy else time.perf_counter()

    def matmul_peak(self) -> float:
        """Floating point operations per second of the fastest of ten large matrix products."""
        size = 8192 if DEVICE == "cuda" else 2048
        matrix = torch.randn(size, size, device=DEVICE, dtype=DTYPES[self.options.precision])
        best = float("inf")
        for _ in range(10):
            start = self.now()
            matrix @ matrix
            best = min(best, self.now() - start)
        return 2 * size**3 / best

    def tokens(self, name: str) -> int:
        return sum(mask.sum().item() for batch in self.batches[name] for _, mask in batch)

    def padding(self, name: str) -> float:
        return 1 - self.tokens(name) / sum(mask.numel() for batch in self.batches[name] for _, mask in batch)

    def text_flops_per_pair(self, name: str) -> float:
        """Multiplications and additions of forward and backward, including padding, which is computed as well."""
        layers, width, _, _ = PRESETS[self.options.preset]
        flops = 0
        for input_ids, _ in itertools.chain(*self.batches[name]):
            pairs, tokens = input_ids.shape
            flops += 3 * pairs * tokens * layers * (2 * 12 * width**2 + 4 * tokens * width)
        return flops / self.num_counted


class PublishedDataset(Dataset):
    """Opens and processes each image separately in every epoch, as the published recipe does."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def __len__(self) -> int:
        return self.bench.num_pairs

    def __getitem__(self, index: int) -> dict:
        image = Image.open(self.bench.folder / f"{index}.jpg")
        pixel_values = self.bench.processor(images=image, return_tensors="pt")["pixel_values"]
        return {"text": self.bench.captions[index], "pixel_values": pixel_values}


class RecordingTrainer(CLIPTrainer):
    """Records the texts of each batch as a list of groups."""

    batches: list

    def training_step(self, model, batch, num_items_in_batch=None):
        inputs = batch["model_inputs"]
        texts = [
            inputs[key].split([texts for texts, _ in inputs["text_groups"]]) for key in ("input_ids", "attention_mask")
        ]
        widths = [width for _, width in inputs["text_groups"]]
        groups = [(ids[:, :width], mask[:, :width]) for ids, mask, width in zip(*texts, widths, strict=True)]
        self.batches = [*getattr(self, "batches", []), groups]
        return super().training_step(model, batch, num_items_in_batch)


class Clock(TrainerCallback):
    """Measures the seconds of the warm-up steps and of the steps after them.

    `host_seconds`: CPU time of this process in the latter. On a GPU it is what the host needs to launch the work:
    where it is close to the seconds themselves, the GPU waits for the host.
    """

    def __init__(self, now: Callable[[], float], warmup_steps: int):
        self.now, self.warmup_steps = now, warmup_steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warmup_steps:
            self.warmup_seconds, self.start = self.now() - self.start, self.now()
            self.host_start = time.process_time()
        elif state.global_step == state.max_steps:
            self.host_seconds = time.process_time() - self.host_start
            self.seconds = self.now() - self.start


def report(results: dict) -> None:
    for name, value in cells(results):
        print(f"{name:<40} {value:>12}")


def cells(results: dict) -> Iterator[tuple[str, str]]:
    """Name and value of each figure."""
    for name, value in results.items():
        if name == "pairs_per_second":
            yield from ((f"{loop}, pairs/s", f"{speed:.1f}") for loop, speed in value.items())
        else:
            yield name, f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
