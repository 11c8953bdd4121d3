"""Stops a run that no longer improves."""

import logging
import math

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class StopEarly(TrainerCallback):
    """Saves a checkpoint and stops after `patience` evaluations without a better metric_for_best_model.

    Evaluations are counted in the log of the run, which checkpoints contain: a resumed run stops where an
    uninterrupted one would have, and a run that had stopped takes no further step. As for the Trainer's best
    checkpoint, the evaluation before the first step (eval_on_start) does not count: those weights are not saved.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_train_begin(self, args, state, control, **kwargs):
        self._stop_if_due(args, state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._stop_if_due(args, state, control)
        control.should_save |= control.should_training_stop and args.save_strategy != "no"

    def _stop_if_due(self, args, state, control) -> None:
        name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
        value_at = {entry["step"]: entry[name] for entry in state.log_history if name in entry and entry["step"] > 0}
        if control.should_training_stop or not value_at:
            return
        sign = 1 if args.greater_is_better else -1
        best = max(value_at, key=lambda step: -math.inf if math.isnan(value_at[step]) else sign * value_at[step])
        later = sum(step > best for step in value_at)
        if later >= self.patience:
            control.should_training_stop = True
            logger.info(
                "training stops early at step %d: %s was %.4g at step %d and did not improve in %d evaluations since.",
                *(state.global_step, name, value_at[best], best, later),
            )
