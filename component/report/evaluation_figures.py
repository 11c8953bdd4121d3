"""Figures of an evaluation: recall curves, and the hardest mistakes."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageOps
from torch import Tensor

from component.ground.plain_text import one_line
from component.metrics import RECALL_AT
from component.report.figures import new_figure
from component.report.labels import label

Item = str | Image.Image
MistakeRow = tuple[Item, Item, Item, int]  # query, ranked first, right answer, rank of the right answer

CELL = (320, 240)  # pixels of an image of `draw_mistakes`
_CELL_COLOUR, _LINE_COLOUR = "#f3f5f7", "#e6eaee"


def recall_curve(rank: Tensor) -> list[tuple[int, float]]:
    """(k, recall@k in percent) for k from 1 to the worst rank, at most 1000.

    Args:
        rank: (Q,) ranks from 1.

    >>> import torch
    >>> recall_curve(torch.tensor([1, 3]))
    [(1, 50.0), (2, 50.0), (3, 100.0)]
    """
    ks = range(1, max(2, min(1000, int(rank.max()))) + 1)
    return [(k, 100 * (rank <= k).double().mean().item()) for k in ks]


def draw_recall(path: str, ranks: dict[str, Tensor]) -> None:
    """Draw recall@k over k, one curve per direction, with k = 1, 5 and 10 marked.

    Args:
        ranks: name of the curve → (Q,) ranks from 1.
    """
    with new_figure(path, figsize=(6, 4), layout="constrained") as (_, axes):
        curves = {name: dict(recall_curve(rank)) for name, rank in ranks.items()}
        for name, curve in curves.items():
            marked = {k: curve[k] for k in RECALL_AT if k in curve}
            values = "  ".join(f"R@{k} {value:.1f}" for k, value in marked.items())
            (line,) = axes.plot(curve.keys(), curve.values(), label=f"{name}   {values}")
            axes.plot(marked.keys(), marked.values(), "o", color=line.get_color())
        lowest = min(value for curve in curves.values() for value in curve.values())
        axes.set(xscale="log", xlabel="k", ylabel=label("recall@k (%)"), ylim=(max(0, lowest - 8), 103))
        axes.set_xticks([k for k in (1, 5, 10, 100, 1000) if k <= max(map(len, curves.values())) or k <= 10])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")


def draw_mistakes(path: str, mistakes: Sequence[MistakeRow]) -> None:
    """Draw one row per mistake: the query, what was ranked first, and the right answer, in cells of one size."""
    count = max(1, len(mistakes))
    height = 1.7 * count + 0.4
    with new_figure(path, count, 3, has_texts=True, figsize=(6.6, height), squeeze=False) as (figure, grid):
        figure.subplots_adjust(
            left=0.01, right=0.99, bottom=0.1 / height, top=1 - 0.35 / height, wspace=0.03, hspace=0.06
        )
        for axes, title in zip(grid[0], ("query", "ranked first", "right answer"), strict=True):
            axes.set_title(label(title), fontsize=10, color="#444")
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[], facecolor=_CELL_COLOUR, xlim=(0, CELL[0]), ylim=(CELL[1], 0))
            axes.spines[:].set_color(_LINE_COLOUR)
        if not mistakes:
            _write(grid[0, 1], label("no mistakes"))
        for row, (*cells, rank) in zip(grid, mistakes, strict=False):
            for axes, cell in zip(row, cells, strict=True):
                if isinstance(cell, str):
                    _write(axes, textwrap.fill(one_line(cell), 11, max_lines=5, placeholder="…"))
                else:
                    axes.imshow(ImageOps.pad(cell, CELL, color="white"), aspect="auto")
            row[2].text(
                8, CELL[1] - 8, f"{label('rank')} {rank:,}", fontsize=9, bbox=dict(facecolor="white", lw=0, pad=2)
            )


def _write(axes, text: str) -> None:
    axes.text(CELL[0] / 2, CELL[1] / 2, text.replace("$", r"\$"), ha="center", va="center", fontsize=12)
