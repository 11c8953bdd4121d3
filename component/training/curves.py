"""The curves of a run: what the Trainer logged, as a table with a row for each step that was logged."""

import csv
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from transformers import IntervalStrategy, TrainerCallback

from component.ground.files import new_file
from component.training.results import CURVES

logger = logging.getLogger(__name__)

CSV, PNG = CURVES
COLUMNS = ("step", "epoch", "loss", "ln_batch", "learning_rate", "logit_scale", "grad_norm", "pairs_per_second")

Row = dict[str, float]


def curves(log_history: Iterable[dict[str, float]]) -> list[Row]:
    """A row for each step, in order, of all that was logged at it; what was logged twice counts as it was last.

    That is the case where a finished run is evaluated again. The totals of a training belong to no step, and are
    left out.
    """
    rows: dict[float, Row] = {}
    for entry in log_history:
        if "train_runtime" not in entry:
            rows.setdefault(entry["step"], {}).update(entry)
    return [rows[step] for step in sorted(rows)]


def write_csv(path: str, rows: list[Row]) -> None:
    """Write the rows under the names of all that they hold; a cell is empty where nothing was logged."""
    others = sorted({key for row in rows for key in row} - set(COLUMNS))
    with new_file(path, newline="") as file:
        table = csv.DictWriter(file, [*COLUMNS, *others], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: str, last_step: int) -> list[Row]:
    """The rows up to a step that `write_csv` has written; none where there is no such file, or it was changed."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in table if row["step"] <= last_step]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read: the curves begin anew (%r).", path, error)
        return []


class WriteCurves(TrainerCallback):
    """After each evaluation and at the end, writes training.csv to output_dir, and has training.png drawn.

    The curves come from the log history, which checkpoints keep, and from training.csv itself, as an evaluation at the
    end of an epoch comes after the checkpoint of its step: a run that was resumed has the curves of one that never
    stopped. A disk that does not take them is told of, and stops nothing.

    Args:
        draw: draws rows into a PNG of this path. Where it raises ModuleNotFoundError, a line says once what is
            missing.
    """

    def __init__(self, draw: Callable[[str, list[Row]], Any]):
        self._draw = draw
        self._before: list[Row] = []
        self._written: list[Row] = []
        self._has_best_weights = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._has_best_weights = False
        if state.is_world_process_zero:
            self._before = read_csv(os.path.join(args.output_dir, CSV), last_step=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # The rest behind the last log, or all of a run that is shorter than logging_steps.
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    def on_evaluate(self, args, state, control, **kwargs):
        if not self._has_best_weights:  # whose figures would stand at the last step
            self.write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.write(args, state)
        self._has_best_weights = args.load_best_model_at_end

    def write(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        rows = curves([*self._before, *state.log_history])
        if rows == self._written:
            return
        self._written = rows
        try:
            write_csv(os.path.join(args.output_dir, CSV), rows)
            if self._draw:
                self._draw(os.path.join(args.output_dir, PNG), rows)
        except ModuleNotFoundError as error:
            logger.warning("%s is not drawn, %s has its numbers: %s", PNG, CSV, error)
            self._draw = None
        except OSError as error:
            logger.warning("the curves of the run cannot be written to %s: %s", args.output_dir, error)
