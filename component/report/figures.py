"""How a figure is made: matplotlib, a Chinese font, and the PNG file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from component.ground.files import new_file
from component.ground.optional import import_optional
from component.report.labels import is_chinese

logger = logging.getLogger(__name__)

CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # matplotlib's name for the collection of all Noto Sans CJK fonts
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


def load_pyplot():
    """matplotlib.pyplot, set up to draw into files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import_optional("matplotlib", "a figure").use("agg")
    return import_optional("matplotlib.pyplot", "a figure")


@contextmanager
def new_figure(path: str, rows: int = 1, columns: int = 1, has_texts: bool = False, **options) -> Iterator[tuple]:
    """Yield (figure, axes) to draw on; write them to `path` as PNG, whole or not at all, when the block ends.

    Args:
        has_texts: texts from data will be drawn, which may be Chinese. Without a Chinese font a warning is logged.
        options: of `pyplot.subplots`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    pyplot, font = load_pyplot(), None
    if has_texts or is_chinese():
        font = chinese_font()
        if font is None:
            logger.warning("%s: no Chinese font is installed, characters are boxes: apt install fonts-noto-cjk", path)
    fonts = [*([font] if font else []), "DejaVu Sans"]
    with pyplot.rc_context({"font.sans-serif": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure, axes = pyplot.subplots(rows, columns, **options)
        try:
            yield figure, axes
            with new_file(path, "wb") as file:
                figure.savefig(file, format="png", dpi=120)
        finally:
            pyplot.close(figure)


def chinese_font() -> str | None:
    """Name of an installed font with Chinese characters: one of `CHINESE_FONTS` if possible. None if there is none."""
    load_pyplot()
    from matplotlib import font_manager

    manager = font_manager.fontManager
    found = _first_known(manager)
    if found:
        return found
    # The list is read from a cache, which can be older than the font.
    listed = {font.fname for font in manager.ttflist}
    for path in set(font_manager.findSystemFonts()) - listed:
        with suppress(Exception):  # a file that FreeType cannot read
            manager.addfont(path)
    return _first_known(manager) or next((font.name for font in manager.ttflist if _has_chinese(font.fname)), None)


def _first_known(manager) -> str | None:
    names = {font.name for font in manager.ttflist}
    return next((name for name in CHINESE_FONTS if name in names), None)


def _has_chinese(path: str) -> bool:
    from matplotlib.ft2font import FT2Font

    with suppress(Exception):
        return all(FT2Font(path).get_char_index(ord(character)) for character in "中图")
    return False
