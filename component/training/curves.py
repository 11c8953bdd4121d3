"""The curves of a run: what the Trainer logged, as a table with one row per logged step."""

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
    """One row per step, in order, with everything logged at that step. Of a value logged twice, as when a finished run
    is evaluated again, the last one counts. The totals of a run are left out.
    """
    rows: dict[float, Row] = {}
    for entry in log_history:
        if "train_runtime" not in entry:
            rows.setdefault(entry["step"], {}).update(entry)
    return [rows[step] for step in sorted(rows)]


def write_csv(path: str, rows: list[Row]) -> None:
    """Write the rows as CSV, with a column for every name in them and empty cells for missing values."""
    others = sorted({key for row in rows for key in row} - set(COLUMNS))
    with new_file(path, newline="") as file:
        table = csv.DictWriter(file, [*COLUMNS, *others], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: str, last_step: int) -> list[Row]:
    """Read the rows up to a step from what `write_csv` wrote; none if the file is missing or cannot be parsed."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in table if row["step"] <= last_step]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read, so the curves start again (%r).", path, error)
        return []


class WriteCurves(TrainerCallback):
    """Writes training.csv and training.png to output_dir after each evaluation and at the end.

    The rows come from the log history, which checkpoints contain, and from training.csv itself, because the evaluation
    at the end of an epoch comes after the checkpoint of its step. A resumed run thus has the curves of one that never
    stopped. If the files cannot be written, log a warning and continue.

    Args:
        draw: called with a path and rows to draw a PNG. If it raises ModuleNotFoundError, log once what is missing.
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
        # Log the steps since the last log, or all of a run that is shorter than logging_steps.
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    def on_evaluate(self, args, state, control, **kwargs):
        if not self._has_best_weights:  # else the figures of the best weights would appear at the last step
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
            logger.warning("%s is not drawn (its numbers are in %s): %s", PNG, CSV, error)
            self._draw = None
        except OSError as error:
            logger.warning("the curves of the run cannot be written to %s: %s", args.output_dir, error)
