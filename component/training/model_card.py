"""The model card: README.md beside the weights, by which the Hub shows, finds and loads them."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from component.argument import CLIPTrainingArguments
from component.files import write_text
from component.model_path import is_hub_name

_TEMPLATE = Path(__file__).with_suffix(".md")


def write_model_card(folder: str, args: CLIPTrainingArguments, dimensions: int, num_pairs: int) -> None:
    """Write README.md, whole or not at all, from the arguments and from what the run has left in output_dir.

    Folders of this machine are named by their last part; only names of the Hub stand in the metadata.

    Args:
        folder: where the weights are.
        dimensions: of an embedding.
        num_pairs: that the model was trained on.
    """
    name = (args.hub_model_id or os.path.abspath(args.output_dir)).split("/")[-1]
    results = _read(args, "test_results.json")
    recalls = {
        key.removeprefix("eval_"): value for key, value in results.items() if "recall" in key and value is not None
    }
    test_data = _last_part(args.test_file) if recalls else None
    data = ModelCardData(
        language="zh",
        license=args.model_license or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=[path for path in _base_models(args) if is_hub_name(path)] or None,
        tags=["clip", "chinese", "image-text-retrieval"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="zero-shot-retrieval",
                dataset_type="image-text-pairs",
                dataset_name=test_data,
                metric_type="recall",
                metric_name=key,
                metric_value=value,
            )
            for key, value in recalls.items()
        ]
        or None,
    )
    scores = {key: f"{value:.1%}" for key, value in recalls.items()}
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        name=name,
        place=args.hub_model_id or "path/to/checkpoint-final",
        dimensions=dimensions,
        facts=_table("", "", dict(_facts(args, num_pairs))),
        results=_table(f"{test_data}", f"{results.get('eval_pairs')} pairs", scores)
        if recalls
        else "还没有评测。Not evaluated.",
    )
    write_text(os.path.join(folder, "README.md"), f"---\n{data.to_yaml()}\n---\n\n{text}")


def _base_models(args: CLIPTrainingArguments) -> list[str]:
    return [args.clip_pretrain_path, *([] if args.load_from_bert_clip else [args.bert_pretrain_path])]


def _facts(args: CLIPTrainingArguments, num_pairs: int) -> Iterator[tuple[str, Any]]:
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    yield (
        "起点 · base models",
        ", ".join(path if is_hub_name(path) else _last_part(path) for path in _base_models(args)),
    )
    yield "训练数据 · training data", f"{_last_part(args.train_file)}, {num_pairs:,} pairs"
    yield (
        "训练长度 · length",
        f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
    )
    yield "batch", f"{batch:,}"
    for key in ("loss_type", "learning_rate", "weight_decay", "max_seq_length", "freeze_vision", "seed"):
        yield f"`{key}`", getattr(args, key)
    yield "精度 · precision", "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
    yield "版本 · versions", ", ".join(f"{name} {version}" for name, version in _read(args, "versions.json").items())
    yield "许可 · licence", args.model_license or "未填写 · not stated"


def _table(left: str, right: str, rows: dict[str, Any]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _last_part(paths: str | list[str]) -> str:
    paths = [paths] if isinstance(paths, str) else paths
    names = [os.path.basename(os.path.normpath(path)) for path in paths]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _read(args: CLIPTrainingArguments, name: str) -> dict[str, Any]:
    with suppress(FileNotFoundError), open(os.path.join(args.output_dir, name), encoding="utf-8") as file:
        return json.load(file)
    return {}
