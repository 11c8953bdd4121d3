"""Pictures of an evaluation: recall curves, and a gallery of the hardest mistakes."""

import logging
import textwrap
import warnings
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from component.ground.files import new_file
from component.ground.optional import import_optional
from component.ground.plain_text import one_line

logger = logging.getLogger(__name__)

CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # what matplotlib calls the collection that holds all of Noto Sans CJK
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)


def chinese_font() -> str | None:
    """Name of an installed font that has Chinese characters, or None."""
    load_pyplot()
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in installed), None)


def draw_recall(path: str, ranks: dict[str, Tensor]) -> None:
    """Recall@k against k, one curve for each direction.

    Args:
        ranks: name of the curve → (Q,) ranks from 1.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, rank in ranks.items():
        ks = range(1, max(2, min(1000, int(rank.max())) + 1))
        axes.plot(ks, [100 * (rank <= k).double().mean().item() for k in ks], label=name)
    axes.set(xscale="log", xlabel="k", ylabel="recall@k (%)", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_mistakes(
    path: str, mistakes: Sequence[tuple[str | Image.Image, str | Image.Image, str | Image.Image, int]]
) -> None:
    """One row per mistake: query, what was ranked first, what was right; texts and pictures as they are.

    Args:
        mistakes: (query, ranked first, right answer, its rank).

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    font = chinese_font()
    if font is None:
        logger.warning("no Chinese font is installed: %s has boxes for characters (apt install fonts-noto-cjk)", path)
    fonts = [font, "DejaVu Sans"] if font else ["DejaVu Sans"]
    with pyplot.rc_context({"font.sans-serif": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure, grid = pyplot.subplots(
            max(1, len(mistakes)),
            3,
            figsize=(6.6, 2 * max(1, len(mistakes)) + 0.3),
            squeeze=False,
            layout="constrained",
        )
        for axes in grid.flat:
            axes.axis("off")
        if not mistakes:
            grid[0, 1].text(0.5, 0.5, "no mistakes", ha="center", va="center")
        for row, (*cells, rank) in zip(grid, mistakes, strict=False):
            for axes, cell, title in zip(row, cells, ("query", "ranked first", f"right, rank {rank:,}"), strict=True):
                axes.set_title(title, fontsize=9, color="dimgray")
                if isinstance(cell, str):
                    text = textwrap.fill(one_line(cell), 11, max_lines=5, placeholder="…")
                    axes.text(0.5, 0.5, text.replace("$", r"\$"), ha="center", va="center", fontsize=12)
                else:
                    axes.imshow(cell)
        save_figure(figure, path)


def save_figure(figure, path: str) -> None:
    """Write it as PNG, whole or not at all, and free its memory."""
    with new_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    load_pyplot().close(figure)


def load_pyplot():
    """matplotlib.pyplot, set to draw into files.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    import_optional("matplotlib", "a figure").use("agg")
    return import_optional("matplotlib.pyplot", "a figure")
