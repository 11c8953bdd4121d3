"""The best evaluation of a run by metric_for_best_model, and the checkpoint that has its weights."""

import logging
import math
from collections.abc import Iterable
from typing import Any

from component.training.checkpoint_files import run_id_of, saved_checkpoints

logger = logging.getLogger(__name__)


def figures_of(args, log_history: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Step → value of metric_for_best_model, of all evaluations in a log; {} if there is no such metric.

    The evaluation of eval_on_start is not among them: the run has no weights of its own then.
    """
    if args.metric_for_best_model is None:
        return {}
    name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
    return {entry["step"]: entry[name] for entry in log_history if name in entry and entry["step"]}


def best_step(args, figures: dict[int, float]) -> int | None:
    """The first step with the best value, NaN being the worst; None if there is no step."""
    sign = 1 if args.greater_is_better else -1
    return max(
        figures, key=lambda step: -math.inf if math.isnan(figures[step]) else sign * figures[step], default=None
    )


def set_best(args, state, checkpoint: str) -> None:
    """Find the best of a resumed run again, and write it into the `TrainerState` of its checkpoint.

    What the checkpoint says may be the value of another metric, and the path of another folder: the run's log has all
    metrics of each evaluation, and only a checkpoint of this run in this output_dir can be loaded at the end.
    """
    figures = figures_of(args, state.log_history)
    run = run_id_of(checkpoint)
    paths = {int(path.rpartition("-")[2]): path for path in saved_checkpoints(args.output_dir)}
    kept = {
        step: value
        for step, value in figures.items()
        if step in paths and not math.isnan(value) and run_id_of(paths[step]) == run
    }
    best, ever = best_step(args, kept), best_step(args, figures)
    if args.load_best_model_at_end and best != ever:
        logger.warning(
            "the best %s so far was %.4g at step %d, whose checkpoint is not in %s: %s.",
            *(args.metric_for_best_model, figures[ever], ever, args.output_dir),
            "no checkpoint there has a value yet" if best is None else f"the best there is checkpoint-{best}",
        )
    state.best_global_step = best
    state.best_metric = kept.get(best)
    state.best_model_checkpoint = paths.get(best)
