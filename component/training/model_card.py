"""The model card of a trained model, from the arguments and the results in output_dir."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from component.argument import CLIPTrainingArguments
from component.configuration import BertCLIPConfig
from component.hub.model_card import Card, card_table, last_part, recalls_of, write_card
from component.hub.model_path import is_hub_name


def write_model_card(folder: str, args: CLIPTrainingArguments, config: BertCLIPConfig, num_pairs: int) -> None:
    """Write README.md atomically. Of local paths it names only the last component; the metadata has Hub names only.

    Args:
        folder: of the weights.
        config: of the model.
        num_pairs: of the training data.
    """
    results = _read(args, "test_results.json")
    recalls = recalls_of(results, "eval_")
    test_data = last_part(args.test_file) if recalls else None
    scores = {key: f"{value:.1%}" for key, value in recalls.items()}
    card = Card(
        name=(args.hub_model_id or os.path.abspath(args.output_dir)).split("/")[-1],
        load_path=args.hub_model_id or "path/to/checkpoint-final",
        dimensions=config.projection_dim,
        facts=dict(_facts(args, num_pairs)),
        results=card_table(f"{test_data}", f"{results.get('eval_pairs')} pairs", scores)
        if recalls
        else "还没有评测。Not evaluated.",
        recalls=recalls,
        test_data=test_data,
        model_license=args.model_license or None,
        base_models=[path for path in _base_models(args) if is_hub_name(path)],
        has_image_half=config.has_image_half,
    )
    write_card(folder, card)


def _base_models(args: CLIPTrainingArguments) -> list[str]:
    paths = args.clip_pretrain_path, None if args.load_from_bert_clip else args.bert_pretrain_path
    return [path for path in paths if path]


def _facts(args: CLIPTrainingArguments, num_pairs: int) -> Iterator[tuple[str, Any]]:
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    yield (
        "起点 · base models",
        ", ".join(path if is_hub_name(path) else last_part(path) for path in _base_models(args)),
    )
    yield "训练数据 · training data", f"{last_part(args.train_file)}, {num_pairs:,} pairs"
    if args.distill_from:
        path = args.distill_from
        yield "教师 · teacher", path if is_hub_name(path) else last_part(path)
    if args.image_vectors:
        yield "图片向量 · image vectors", last_part(args.image_vectors)
    yield (
        "训练长度 · length",
        f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
    )
    yield "batch", f"{batch:,}"
    for key in ("loss_type", "learning_rate", "weight_decay", "max_seq_length", "freeze_vision", "seed"):
        yield f"`{key}`", getattr(args, key)
    if args.lora_rank is not None:
        yield "`lora_rank`", args.lora_rank
    yield "精度 · precision", "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
    yield "版本 · versions", ", ".join(f"{name} {version}" for name, version in _read(args, "versions.json").items())
    yield "许可 · licence", args.model_license or "未填写 · not stated"


def _read(args: CLIPTrainingArguments, name: str) -> dict[str, Any]:
    with suppress(FileNotFoundError), open(os.path.join(args.output_dir, name), encoding="utf-8") as file:
        return json.load(file)
    return {}
