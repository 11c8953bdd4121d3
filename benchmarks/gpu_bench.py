"""All GPU figures for docs/PERFORMANCE.md in one command, without a network, in about ten minutes.

    python benchmarks/gpu_bench.py --out FOLDER

Writes gpu_bench.json to FOLDER, and gpu_bench.md with the tables for the page:

- pairs per second of train_bench's loops in bf16 and in fp16, with lognormal caption lengths: the published loop, ours
  with and without the feature cache, the bare text tower, the cheapest groups compared with one group; the cost of a
  group (GPU_COSTS in component/pairs/text_groups.py), padding, filling the cache, the peak of matrix products, and the
  hours that the published recipe takes; in bf16 also torch.compile
- peak memory of a step with the gradient cache, by scale_bench
- speed and memory of the loss, by scale_bench
- pairs per second of other trainers, by peer_bench; of open_clip only if --open_clip_python is given

Without a GPU everything runs on the CPU, which is useful for trying it with small numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import peer_bench
import scale_bench
import torch
import train_bench
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--preset", choices=train_bench.PRESETS, default="base", help="size of the towers")
    parser.add_argument("--batch_size", type=int, default=train_bench.RECIPE_BATCH, help="pairs per step")
    parser.add_argument("--steps", type=int, default=8, help="per loop and round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=train_bench.DTYPES, default=["bf16", "fp16"])
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that load data")
    parser.add_argument("--compile", default="inductor", help='backend of torch.compile; "" for none')
    parser.add_argument("--chunk", type=int, default=256, help="contrastive_chunk_size")
    parser.add_argument("--memory_batches", type=int, nargs="+", default=[1024, 4096, 16_384, 32_768])
    parser.add_argument("--loss_pairs", type=int, nargs="+", default=[8192, 65_536])
    parser.add_argument("--open_clip_python", help="see peer_bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    results = {"command": " ".join(sys.argv), "machine": machine()}
    for part in options.parts:
        results[part] = PARTS[part](options)
        results["minutes"] = (time.perf_counter() - start) / 60
        (options.out / "gpu_bench.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (options.out / "gpu_bench.md").write_text("\n".join(page(results)) + "\n", encoding="utf-8")
    print(f"{results['minutes']:.1f} minutes; the tables are in {options.out / 'gpu_bench.md'}")


def machine() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"nvidia-smi": gpu, "CPU cores": str(os.cpu_count()), "python": sys.version.split()[0], **versions}


def training(options: argparse.Namespace) -> dict[str, dict]:
    """Precision → figures."""
    results = {}
    for precision in options.precisions:
        arguments = ["--lognormal", "--preset", options.preset, "--precision", precision]
        arguments += numbers(options, "batch_size", "steps", "rounds", "workers")
        if precision == options.precisions[0]:
            arguments += ["--compile", options.compile]
        results[precision] = train_bench.measure(train_bench.parse(arguments))
        train_bench.report(results[precision])
    return results


def memory(options: argparse.Namespace) -> list[dict]:
    arguments = ["--parts", "memory", "--bf16", "--preset", options.preset]
    arguments += [*numbers(options, "chunk", "memory_batches"), "--plain_up_to", str(options.memory_batches[0])]
    return scale_bench.measure(scale_bench.parse(arguments))["table"]


def loss(options: argparse.Namespace) -> list[dict]:
    arguments = ["--parts", "loss", *numbers(options, "loss_pairs")]
    return scale_bench.measure(scale_bench.parse(arguments))["table"]


def peers(options: argparse.Namespace) -> dict:
    arguments = ["--lognormal", "--preset", options.preset, "--precision", options.precisions[0]]
    arguments += numbers(options, "batch_size", "steps", "rounds", "workers")
    if options.open_clip_python:
        arguments += ["--open_clip_python", options.open_clip_python]
    return peer_bench.measure(peer_bench.parse(arguments))


# The parts that compute in this process come last, because this process then keeps its GPU memory.
PARTS = {"memory": memory, "loss": loss, "peers": peers, "training": training}


def numbers(options: argparse.Namespace, *names: str) -> list[str]:
    """These options as arguments for another benchmark."""
    given = []
    for name in names:
        value = getattr(options, name)
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return given


def page(results: dict) -> Iterator[str]:
    """The lines of the Markdown page."""
    yield f"`{results['command']}`, {', '.join(f'{key} {value}' for key, value in results['machine'].items())}\n"
    training = results.get("training", {})
    columns = {precision: dict(train_bench.cells(figures)) for precision, figures in training.items()}
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    yield from table(["", *columns], [[name, *(cells.get(name, "") for cells in columns.values())] for name in names])
    if "peers" in results:
        yield from table(["peers", results["peers"]["precision"]], list(peer_bench.cells(results["peers"])))
    for part in ("memory", "loss"):
        rows = [
            [row["case"], *(f"{row[key]:,.0f}" if key in row else "" for key in ("pairs_per_second", "megabytes"))]
            for row in results.get(part, ())
        ]
        yield from table([part, "pairs/s", "MB"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows) if rows else ():
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    main()
