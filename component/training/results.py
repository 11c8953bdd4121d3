"""The figures that a run leaves in output_dir."""

import os
from collections.abc import Sequence
from contextlib import suppress

from component.ground.files import write_json

RESULTS = ("train_results.json", "test_results.json")
CURVES = ("training.csv", "training.png")


def write_results(trainer, split: str, metrics: dict[str, float]) -> None:
    """Log the metrics, and write them to `<split>_results.json`."""
    trainer.log_metrics(split, metrics)
    if trainer.args.should_save:
        write_json(os.path.join(trainer.args.output_dir, f"{split}_results.json"), metrics)


def remove_results(args, names: Sequence[str] = RESULTS) -> None:
    """Before other weights take the place of those that the figures are of."""
    if args.should_save:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(args.output_dir, name))
