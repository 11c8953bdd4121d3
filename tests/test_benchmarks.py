"""The benchmarks, at a tiny size: no one would notice that a rarely run script is broken."""

import json

import pytest
from conftest import run_python


def test_the_gpu_benchmark_runs_without_a_gpu(tmp_path):
    tiny = "--preset tiny --batch_size 16 --steps 1 --rounds 1 --workers 0 --precisions fp32"
    sizes = "--chunk 4 --memory_batches 8 --loss_pairs 64"
    result = run_python(
        "benchmarks/gpu_bench.py", "--out", str(tmp_path), "--compile", "", *tiny.split(), *sizes.split()
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "gpu_bench.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in results["memory"]] == ["plain, 8", "chunks of 4, 8"]
    assert [row["case"] for row in results["loss"]] == ["textbook, 64", "in blocks, 64", "in blocks, rank 1 of 8, 64"]
    training = results["training"]["fp32"]
    assert {*"abcd", "b, one group"} <= training["pairs_per_second"].keys()
    assert training["padding, b"] < training["padding, b, one group"]
    assert results["peers"]["pairs_per_second"].keys() >= {"transformers", "ours", "ours without the cache"}
    tables = (tmp_path / "gpu_bench.md").read_text(encoding="utf-8")
    assert (
        "nvidia-smi" in tables and f"| b / a | {training['b / a']:.3f} |" in tables and "| chunks of 4, 8 |" in tables
    )


@pytest.mark.parametrize(
    ("options", "cases"),
    [
        ("--rows 2000 --cases first", ["first"]),
        ("--rows 12000 --images 2000 --cases cached", ["cached", "cached"]),
    ],
    ids=["files", "shards"],
)
def test_the_start_benchmark_runs(tmp_path, options, cases):
    out = tmp_path / "start_bench.json"
    result = run_python("benchmarks/start_bench.py", *options.split(), "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert [row["case"] for row in json.loads(out.read_text(encoding="utf-8"))["table"]] == cases
