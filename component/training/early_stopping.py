"""The end of a run that does not get better any more."""

import logging
import math

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class StopEarly(TrainerCallback):
    """Ends training, with a checkpoint, after `patience` evaluations that were no better than the best one before.

    It counts in the log of the run, which a checkpoint has too: a run that is resumed stops where it would have, and
    one that had stopped takes no further step.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_train_begin(self, args, state, control, **kwargs):
        self._look(args, state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._look(args, state, control)
        control.should_save |= control.should_training_stop and args.save_strategy != "no"

    def _look(self, args, state, control) -> None:
        name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
        figures = {entry["step"]: entry[name] for entry in state.log_history if name in entry}
        if control.should_training_stop or not figures:
            return
        sign = 1 if args.greater_is_better else -1
        best = max(figures, key=lambda step: -math.inf if math.isnan(figures[step]) else sign * figures[step])
        since = sum(step > best for step in figures)
        if since >= self.patience:
            control.should_training_stop = True
            logger.info(
                "training stops early at step %d: %s was %.4g at step %d, and no better in %d evaluations since.",
                state.global_step,
                name,
                figures[best],
                best,
                since,
            )
