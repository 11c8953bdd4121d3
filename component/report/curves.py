"""A picture of a training: each of its curves over the steps."""

from collections.abc import Sequence
from itertools import product

from component.metrics import RECALL_AT
from component.report.figures import load_pyplot, save_figure

DIRECTIONS = {"text_to_image": ("text → image", "-"), "image_to_text": ("image → text", "--")}


def draw_training(path: str, rows: Sequence[dict[str, float]]) -> None:
    """Draw loss beside ln(batch), recall, logit_scale, learning rate, pairs per second and waiting for data, as PNG.

    Args:
        rows: what was logged at each step, under the Trainer's names.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    figure, grid = load_pyplot().subplots(2, 3, figsize=(13, 7), sharex=True)
    # Room for the labels. It is drawn in the middle of a training, and to have it measured costs half as much again.
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.08, top=0.94, wspace=0.16, hspace=0.16)
    loss, recall, scale, rate, speed, wait = grid.flat
    _plot(loss, rows, "ln_batch", label="ln(batch): knows nothing", color="gray", linestyle="--")
    _plot(loss, rows, "loss", label="loss")
    loss.set(title="loss")
    for (number, k), (direction, (name, style)) in product(enumerate(RECALL_AT), DIRECTIONS.items()):
        key, options = f"eval_{direction}_recall@{k}", dict(linestyle=style, color=f"C{number}", marker=".")
        _plot(recall, rows, key, 100, label=f"{name}, R@{k}", **options)
    recall.set(title="recall on test_file (%)", ylim=(0, 101))
    scale.axhline(100, color="gray", linestyle="--", label="bound")
    _plot(scale, rows, "logit_scale", label="logit_scale")
    scale.set(title="logit_scale (1 / temperature)")
    _plot(rate, rows, "learning_rate")
    rate.set(title="learning rate")
    rate.ticklabel_format(axis="y", style="scientific", scilimits=(0, 0))
    _plot(speed, rows, "pairs_per_second")
    speed.set(title="pairs per second")
    _plot(wait, rows, "data_wait", 100)
    wait.set(title="waiting for data (% of the time)", ylim=(0, 101))
    for axes in (loss, scale, rate, speed):
        axes.set_ylim(bottom=0)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", ha="center", color="dimgray", transform=axes.transAxes)
    for axes in grid[1]:
        axes.set_xlabel("step")
    save_figure(figure, path)


def _plot(axes, rows: Sequence[dict[str, float]], key: str, factor: float = 1, **options) -> None:
    """A line through the rows that have the key, or a point where there is one alone."""
    points = [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **{"marker": "." if len(points) == 1 else None, **options})
