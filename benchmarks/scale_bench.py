"""What large batches and many processes cost: one table, whose ratios compare runs made in turns.

    python benchmarks/scale_bench.py --out scale_bench.json
    python benchmarks/scale_bench.py --preset tiny --rounds 1 --memory_batches 1024 4096 --loss_pairs 4096

weak: pairs/s of train_clip.py in 1 and in 2 processes on the CPU, each with the same batch and one thread. "2 apart"
  are two single-process trainings at the same time, which share nothing but the machine.
chunk: pairs/s with contrastive_chunk_size, compared with the same batch in groups of that size without recomputation.
memory: peak of one training step beyond the idle process; it includes gradients, but not AdamW's moments. It is the
  larger of two: the activations of one chunk, which do not grow with the batch, and the embeddings with their
  gradients and a block of the loss (64 MB), which do. With tiny towers the second is larger from the start.
loss: pairs/s and peak memory of the loss with its gradients, beyond embeddings of width 512 and their gradients.
  "textbook" computes all logits at once. "rank 1 of 8" is what one of 8 processes computes: its share of the pairs
  against all pairs.
shards: samples/s of one thread, from image files, from WebDataset shards (jpg, txt and json as img2dataset writes
  them), and from the same shards by the webdataset library if it is installed; all are in the page cache. "read"
  returns the bytes of each image, "caching" its pixels, as when the feature cache is filled; "index" is what
  the start of a training on shards costs in addition.

weak, chunk and memory train on towers with random weights, with cached image features and captions of 5 to 40
characters. Each memory figure is of a process of its own: of its GPU, or resident (Linux only).
"""

import argparse
import collections
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peak_memory import PeakMemory
from synthetic import PRESETS, make_data, make_model, make_processor

from component.dataset import PairDataset
from component.image.batch import ImageBatch
from component.loss import clip_loss
from component.pairs.shards import read_shards
from component.processor import load_processor, save_processor

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = f"{'part':<7} {'case':<34} {'pairs/s':>9} {'MB':>7} {'ratio':>6}  to"
NUM_IMAGES = 256
LOSS_RANKS = 8
SHARD_SAMPLES = 1000
CACHING_BATCH = 64


def main() -> None:
    options = parse()
    print(COLUMNS)
    results = measure(options)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="size of the towers")
    parser.add_argument("--rounds", type=int, default=3, help="of weak and chunk; medians are reported")
    parser.add_argument("--bf16", action="store_true", help="for weak, chunk and memory; default fp32")
    parser.add_argument("--weak_batch", type=int, default=128, help="pairs per process and step")
    parser.add_argument("--weak_steps", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=256, help="contrastive_chunk_size")
    parser.add_argument("--chunk_batch", type=int, default=1024)
    parser.add_argument("--chunk_steps", type=int, default=2)
    parser.add_argument("--memory_batches", type=int, nargs="+", default=[1024, 4096, 16_384])
    parser.add_argument("--loss_pairs", type=int, nargs="+", default=[4096, 8192, 16_384], help="65536 takes long")
    parser.add_argument("--plain_up_to", type=int, default=4096, help="larger batches of memory run in chunks only")
    parser.add_argument("--textbook_up_to", type=int, default=8192, help="more pairs of loss run in blocks only")
    parser.add_argument("--shard_samples", type=int, default=1000)
    parser.add_argument("--out", help="JSON file with the table")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    """Run the parts and print the table row by row."""
    results = {
        **vars(options),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "table": [],
    }
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(Path(folder), options)
        for part in options.parts:
            for row in PARTS[part](options, trainings):
                results["table"].append({"part": part, **row})
                print_row(results["table"][-1])
    results["load_at_end"] = os.getloadavg()[0]
    return results


def print_row(row: dict) -> None:
    formats = {"pairs_per_second": "9.1f", "megabytes": "7.0f", "ratio": "6.2f"}
    cells = [f"{row[key]:>{form}}" if key in row else " " * int(form.split(".")[0]) for key, form in formats.items()]
    print(f"{row['part']:<7} {row['case']:<34} {' '.join(cells)}  {row.get('ratio_to', '')}".rstrip(), flush=True)


class Trainings:
    """Starts train_clip.py on data and towers that are made once."""

    def __init__(self, folder: Path, options):
        self.folder, self.count, self.bf16 = folder, 0, options.bf16
        make_model(options.preset).save_pretrained(folder / "towers")
        save_processor(make_processor(folder), str(folder / "towers"))
        num_pairs = max(2 * options.weak_batch, options.chunk_batch, *options.memory_batches)
        make_data(folder, num_pairs, NUM_IMAGES)

    def start(
        self, steps: int, processes: int = 1, script: str = "train_clip.py", environment=(), **keys
    ) -> "Training":
        """Start one warm-up step and `steps` measured ones, with these keys of the training arguments."""
        self.count += 1
        output = self.folder / f"output{self.count}"
        arguments = {
            "output_dir": str(output),
            "clip_pretrain_path": str(self.folder / "towers"),
            "load_from_bert_clip": True,
            "train_file": str(self.folder / "train.csv"),
            "image_path": str(self.folder),
            "max_steps": 1 + steps,
            "logging_first_step": True,
            "logging_steps": 1 + steps,
            "dataloader_drop_last": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": self.bf16,
            "use_cpu": not torch.cuda.is_available(),
            **keys,
        }
        args_file = self.folder / f"{output.name}.json"
        args_file.write_text(json.dumps(arguments))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launch if processes > 1 else []), ROOT / script, "--train_args_file", args_file]
        return Training(command, output, {**os.environ, **(environment or {})})


class Training:
    """One run of train_clip.py."""

    def __init__(self, command: list, output: Path, environment: dict):
        self.output, self.log = output, output.with_suffix(".log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)

    def result(self, key: str) -> float:
        """Wait for the run to end and return the last value of `key` in its log."""
        if self.process.wait():
            sys.exit(f"{self.process.args} failed:\n{self.log.read_text()[-3000:]}")
        history = json.loads((self.output / "trainer_state.json").read_text())["log_history"]
        return [entry[key] for entry in history if key in entry][-1]


def weak_scaling(options, trainings: Trainings) -> Iterator[dict]:
    keys = {"per_device_train_batch_size": options.weak_batch, "use_cpu": True}

    def speed(runs: int, processes: int) -> float:
        started = [
            trainings.start(options.weak_steps, processes, environment={"OMP_NUM_THREADS": "1"}, **keys)
            for _ in range(runs)
        ]
        return sum(training.result("pairs_per_second") for training in started)

    speeds = medians({"1 process": (1, 1), "2 apart": (2, 1), "2 processes": (1, 2)}, speed, options.rounds)
    yield {"case": "1 process", "pairs_per_second": speeds["1 process"]}
    for case in ("2 apart", "2 processes"):
        efficiency = speeds[case] / (2 * speeds["1 process"])
        yield {"case": case, "pairs_per_second": speeds[case], "ratio": efficiency, "ratio_to": "2 x 1 process"}


def chunk_speed(options, trainings: Trainings) -> Iterator[dict]:
    def speed(key: str) -> float:
        keys = {"per_device_train_batch_size": options.chunk_batch, key: options.chunk}
        return trainings.start(options.chunk_steps, **keys).result("pairs_per_second")

    cases = {"plain": ("text_group_size",), "chunks": ("contrastive_chunk_size",)}
    speeds = medians(cases, speed, options.rounds)
    yield {"case": f"plain, {options.chunk_batch}", "pairs_per_second": speeds["plain"]}
    yield {
        "case": f"chunks of {options.chunk}, {options.chunk_batch}",
        "pairs_per_second": speeds["chunks"],
        "ratio": speeds["plain"] / speeds["chunks"],
        "ratio_to": "time of plain",
    }


def chunk_memory(options, trainings: Trainings) -> Iterator[dict]:
    def peak(batch: int, key: str) -> float:
        # Freed memory returns at once; otherwise holes in glibc's heap count, which differ from run to run.
        keys = {"environment": {"MALLOC_MMAP_THRESHOLD_": "65536"}, "per_device_train_batch_size": batch}
        keys[key] = options.chunk
        return trainings.start(0, script="benchmarks/peak_memory.py", **keys).result("peak_megabytes")

    small = [batch for batch in options.memory_batches if batch <= options.plain_up_to]
    for case, key, batches in (
        ("plain", "text_group_size", small),
        (f"chunks of {options.chunk}", "contrastive_chunk_size", options.memory_batches),
    ):
        first = None
        for batch in batches:
            row = {"case": f"{case}, {batch}", "megabytes": peak(batch, key)}
            if first:
                row |= {"ratio": row["megabytes"] / first["megabytes"], "ratio_to": first["case"]}
            first = first or row
            yield row


def medians(cases: dict[str, tuple], measure, rounds: int) -> dict[str, float]:
    """Case → median of `measure(*arguments)`; the cases take turns."""
    measured = [{case: measure(*arguments) for case, arguments in cases.items()} for _ in range(rounds)]
    return {case: statistics.median(values[case] for values in measured) for case in cases}


def loss_memory(options, trainings: Trainings) -> Iterator[dict]:
    for pairs in options.loss_pairs:
        for case, textbook, ranks in (
            ("textbook", True, 1),
            ("in blocks", False, 1),
            (f"in blocks, rank 1 of {LOSS_RANKS}", False, LOSS_RANKS),
        ):
            if not textbook or pairs <= options.textbook_up_to:
                with multiprocessing.get_context("forkserver").Pool(1) as own_process:
                    speed, megabytes = own_process.apply(measure_loss, (pairs, textbook, ranks))
                yield {"case": f"{case}, {pairs}", "pairs_per_second": speed, "megabytes": megabytes}


def measure_loss(pairs: int, textbook: bool, ranks: int) -> tuple[float, float]:
    """Pairs per second and MB of one forward and backward pass."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, text = (F.normalize(torch.randn(pairs // ranks, 512, device=device)).requires_grad_() for _ in range(2))
    scale = torch.tensor(50.0, device=device, requires_grad=True)
    gather = (lambda rows: (rows.repeat(ranks, 1), 0)) if ranks > 1 else None

    def step(size: int) -> None:
        loss = textbook_loss if textbook else lambda *inputs: clip_loss(*inputs, gather=gather)
        loss(image[:size], text[:size], scale).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    step(64)  # allocates the gradients of the embeddings
    memory, start = PeakMemory(device == "cuda"), time.perf_counter()
    step(len(image))
    return pairs / ranks / (time.perf_counter() - start), memory.megabytes()


def textbook_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP, arXiv:2103.00020, figure 3."""
    logits, labels = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def shard_reading(options, trainings: Trainings) -> Iterator[dict]:
    folder, count = trainings.folder / "shards", options.shard_samples
    folder.mkdir()
    paths = write_shards(folder, make_data(folder, count))
    processor = load_processor(str(trainings.folder / "towers"))
    files = PairDataset(str(folder / "train.csv"), str(folder), processor, max_seq_length=100)
    shards = PairDataset(paths, None, processor, max_seq_length=100)
    located = [(index.shard, locator) for index in read_shards(paths) for locator in index.locators]
    batches = [range(first, min(first + CACHING_BATCH, count)) for first in range(0, count, CACHING_BATCH)]
    ways = {
        "read, files": lambda: ((folder / f"{index}.jpg").read_bytes() for index in range(count)),
        "read, shards": lambda: (shard.read(locator) for shard, locator in located),
        "caching, files": lambda: map(files.images.load, batches),
        "caching, shards": lambda: map(shards.images.load, batches),
        "index, shards": lambda: read_shards(paths),
    }
    if importlib.util.find_spec("webdataset"):
        from webdataset import WebDataset

        def samples() -> Iterator[bytes]:
            return (sample["jpg"] for sample in WebDataset(paths, shardshuffle=False))

        def pixels() -> Iterator:
            images, transform = samples(), files.images.transform
            for batch in batches:
                yield ImageBatch.read(batch, lambda _: transform.read(next(images)))

        ways |= {"read, webdataset": samples, "caching, webdataset": pixels}

    def samples_per_second(way: Callable[[], Iterable]) -> float:
        start = time.perf_counter()
        collections.deque(way(), maxlen=0)
        return count / (time.perf_counter() - start)

    speeds = medians({case: (way,) for case, way in ways.items()}, samples_per_second, options.rounds)
    for case, speed in sorted(speeds.items()):
        row = {"case": case, "pairs_per_second": speed}
        base = case.split(",")[0] + ", files"
        if case != base and base in speeds:
            row |= {"ratio": speed / speeds[base], "ratio_to": base}
        yield row


def write_shards(folder: Path, captions: list[str]) -> list[str]:
    """Write the images of `make_data` and their captions as img2dataset does; returns the paths."""
    paths = []
    for first in range(0, len(captions), SHARD_SAMPLES):
        paths.append(str(folder / f"{first // SHARD_SAMPLES:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for index in range(first, min(first + SHARD_SAMPLES, len(captions))):
                described = json.dumps({"caption": captions[index], "key": f"{index:09d}", "status": "success"})
                members = {
                    "jpg": (folder / f"{index}.jpg").read_bytes(),
                    "txt": captions[index].encode(),
                    "json": described.encode(),
                }
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"{index:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


PARTS = {
    "weak": weak_scaling,
    "chunk": chunk_speed,
    "memory": chunk_memory,
    "loss": loss_memory,
    "shards": shard_reading,
}

if __name__ == "__main__":
    main()
