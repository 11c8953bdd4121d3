"""Stops a run that no longer improves."""

import logging

from transformers import TrainerCallback

from component.training.best import best_step, figures_of

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
        figures = figures_of(args, state.log_history)
        if control.should_training_stop or not figures:
            return
        best = best_step(args, figures)
        later = sum(step > best for step in figures)
        if later >= self.patience:
            control.should_training_stop = True
            name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
            logger.info(
                "training stops early at step %d: %s was %.4g at step %d and did not improve in %d evaluations since.",
                *(state.global_step, name, figures[best], best, later),
            )
