"""The curves of a training as a figure."""

import math
from collections.abc import Sequence
from itertools import product

from component.metrics import RECALL_AT
from component.report.figures import new_figure
from component.report.labels import DIRECTIONS, label

LINE_STYLES = ("-", "--")  # of the directions

Row = dict[str, float]


def draw_training(path: str, rows: Sequence[Row]) -> None:
    """Draw loss, recall, logit_scale, learning rate, pairs per second and waiting for data over the steps, as PNG.

    The loss of training is drawn with that of test_file and with ln(batch), the loss of a model that cannot tell pairs
    apart. The recalls of a single evaluation are bars.

    Args:
        rows: what was logged at each step, under the Trainer's names.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with new_figure(path, 2, 3, figsize=(13, 7)) as (figure, grid):
        # Fixed margins for the labels: measuring them takes half as long again, and training waits for the figure.
        figure.subplots_adjust(left=0.05, right=0.98, bottom=0.08, top=0.95, wspace=0.16, hspace=0.3)
        loss, recall, scale, rate, speed, wait = grid.flat
        _plot(loss, rows, "ln_batch", label=label("ln(batch): cannot tell pairs apart"), color="gray", linestyle="--")
        _plot(loss, rows, "loss", label=label("training"))
        _plot(loss, rows, "eval_loss", label=label("test_file"), marker=".")
        loss.set(title=label("loss"))
        _draw_recall(recall, [row for row in rows if any("_recall@" in key for key in row)])
        scale.axhline(100, color="gray", linestyle="--", label=label("upper bound"))
        _plot(scale, rows, "logit_scale", label="logit_scale")
        scale.set(title=label("logit_scale (1 / temperature)"))
        _plot(rate, rows, "learning_rate")
        rate.set(title=label("learning rate"))
        rate.ticklabel_format(axis="y", style="scientific", scilimits=(0, 0))
        _plot(speed, rows, "pairs_per_second")
        speed.set(title=label("pairs per second"))
        _plot(wait, rows, "data_wait", 100)
        wait.set(title=label("waiting for data (% of the time)"), ylim=(0, 101))
        for axes in (loss, scale, rate, speed):
            if 0 < axes.dataLim.ymax < math.inf:
                axes.set_ylim(0, 1.06 * axes.dataLim.ymax)
        for axes in grid.flat:
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize=8)
            if not axes.lines and not axes.patches:
                axes.text(0.5, 0.5, label("not measured"), ha="center", color="dimgray", transform=axes.transAxes)
                axes.set(xticks=[], yticks=[])
            if axes.lines:
                axes.set_xlim(0, 1.02 * max((row["step"] for row in rows), default=1))
        for axes in grid[1]:
            axes.set_xlabel(label("step"))


def _draw_recall(axes, evaluations: Sequence[Row]) -> None:
    """Curves over the steps from their own minimum; bars with their values if there is one evaluation."""
    title = label("recall on test_file (%)")
    values = []
    for (number, k), (place, (direction, name)) in product(enumerate(RECALL_AT), enumerate(DIRECTIONS.items())):
        key = f"eval_{direction}_recall@{k}"
        found = [100 * row[key] for row in evaluations if key in row]
        values += found
        if len(evaluations) > 1:
            line = dict(label=f"{label(name)}  R@{k}", linestyle=LINE_STYLES[place], color=f"C{number}")
            _plot(axes, evaluations, key, 100, **line)
        elif found:
            legend = label(name) if number == 0 else None
            bars = axes.bar(number + 0.4 * place - 0.2, found[0], 0.38, color=f"C{place}", label=legend)
            axes.bar_label(bars, fmt="%.1f", fontsize=8)
    if len(evaluations) > 1:
        axes.set_ylim(max(0, min(values) - 2), min(101, max(values) + 2))
    elif evaluations:
        axes.set_ylim(0, 112)
        title += f" · {label('step')} {evaluations[0]['step']:g}"
        axes.set_xticks(range(len(RECALL_AT)), [f"R@{k}" for k in RECALL_AT])
    axes.set_title(title)


def _plot(axes, rows: Sequence[Row], key: str, factor: float = 1, **options) -> None:
    """A line through the rows that have the key; if there is only one, a marker and its value."""
    points = [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **{"marker": "." if len(points) == 1 else None, **options})
    if len(points) == 1:
        axes.annotate(f"{points[0][1]:.3g} ", points[0], ha="right", va="bottom", fontsize=8)
