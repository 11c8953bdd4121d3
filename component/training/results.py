"""What a run writes to output_dir in addition to checkpoints: its arguments, versions and results."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
import transformers

from component.ground.files import write_json

RESULTS = ("train_results.json", "test_results.json")
CURVES = ("training.csv", "training.png")


def write_arguments(args) -> None:
    """Write train_args.json, which train_clip.py can read again, and versions.json, in the first process."""
    if args.process_index != 0:
        return
    os.makedirs(args.output_dir, exist_ok=True)
    write_json(os.path.join(args.output_dir, "train_args.json"), args.to_dict())
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(os.path.join(args.output_dir, "versions.json"), versions)


def write_results(trainer, split: str, metrics: dict[str, float]) -> None:
    """Log the metrics, and write them to `<split>_results.json`."""
    trainer.log_metrics(split, metrics)
    if trainer.args.should_save:
        write_json(os.path.join(trainer.args.output_dir, f"{split}_results.json"), metrics)


def remove_results(args, names: Sequence[str] = RESULTS) -> None:
    """Remove results of earlier weights, before new weights replace them."""
    if args.should_save:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(args.output_dir, name))
