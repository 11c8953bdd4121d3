"""Similarity → one self-contained HTML page with heat map and best matches, readable on a phone."""

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from component.embedded import Embedded
from component.embedding import open_image
from component.ground.plain_text import one_line
from component.report.html import data_uri, render
from component.similarity import Similarity

MOST_QUERIES = 100  # shown with their matches, per similarity
MOST_CELLS = 40  # rows and columns of the heat map
_EQUAL_CONTRAST = 0.179  # luminance at which black and white ink have the same contrast, 4.6 : 1


class _Item(NamedTuple):
    """A text or an image: its name, and the CSS class of its thumbnail if it is an image."""

    name: str
    image: str | None


class _Thumbnails(dict[str, str]):
    """CSS class → data URI of a thumbnail, so that the page contains each image once, however often it shows it."""

    def __init__(self):
        self._name_of: dict[tuple[int, int], str] = {}

    def item(self, side: Embedded, index: int) -> _Item:
        item = side.item(index)
        if side.kind == "text":
            return _Item(one_line(item), None)
        key = id(side), index
        if key not in self._name_of:
            self._name_of[key] = f"i{len(self._name_of)}"
            self[self._name_of[key]] = data_uri(open_image(item))
        return _Item(
            one_line(os.path.basename(item)) if isinstance(item, str) else f"#{index + 1}", self._name_of[key]
        )


def similarity_page(similarities: Sequence[Similarity], top_k: int) -> str:
    """HTML page: for each similarity the cosines as a heat map, and the best matches of each query.

    Images are embedded. Of a large comparison the page shows the first MOST_CELLS rows and columns and the first
    MOST_QUERIES queries, and says so.

    Args:
        top_k: matches per query.
    """
    thumbnails = _Thumbnails()
    parts = [_part(similarity, top_k, thumbnails) for similarity in similarities]
    return render(
        "similarity.html",
        title="图文相似度",
        card_width="20rem",
        parts=parts,
        thumbnails=thumbnails,
        most_cells=MOST_CELLS,
        most_queries=MOST_QUERIES,
    )


def _part(similarity: Similarity, top_k: int, thumbnails: _Thumbnails) -> dict[str, Any]:
    words = {"image": "图片", "text": "文本"}
    queries, candidates = similarity.queries, similarity.candidates
    cells, lowest, highest = _heat_map(similarity)
    return {
        "title": f"{words[queries.kind]} → {words[candidates.kind]}",
        "num_queries": len(queries),
        "num_candidates": len(candidates),
        "is_among_themselves": similarity.is_among_themselves,
        "lowest": lowest,
        "highest": highest,
        "logit_scale": similarity.logit_scale,
        "top_k": min(top_k, len(candidates) - similarity.is_among_themselves),
        "columns": [thumbnails.item(candidates, column) for column in range(len(cells[0]))],
        "rows": [(thumbnails.item(queries, row), line) for row, line in enumerate(cells)],
        "cards": [
            (
                thumbnails.item(queries, index),
                [(thumbnails.item(candidates, match.candidate), match) for match in matches],
            )
            for index, matches in enumerate(islice(similarity.best(top_k), MOST_QUERIES))
        ],
    }


def _heat_map(similarity: Similarity) -> tuple[list[list[dict[str, str]]], float, float]:
    """Text, colour and ink of each cell ({} for an item with itself), and the lowest and highest cosine shown."""
    shown = similarity.queries.embeds[:MOST_CELLS] @ similarity.candidates.embeds[:MOST_CELLS].T
    if similarity.is_among_themselves:
        shown.fill_diagonal_(float("nan"))
    lowest, highest = shown.nan_to_num(2).min().item(), shown.nan_to_num(-2).max().item()

    def cell(value: float) -> dict[str, str]:
        if value != value:
            return {}
        colour = _colour((value - lowest) / (highest - lowest or 1))
        ink = "#fff" if _luminance(colour) < _EQUAL_CONTRAST else "#000"
        return {"text": f"{round(value, 2) + 0:.2f}", "colour": "#" + bytes(colour).hex(), "ink": ink}

    return [[cell(value) for value in line] for line in shown.tolist()], lowest, highest


def _colour(heat: float) -> list[int]:
    """RGB from near white (0) to dark blue (1)."""
    return [round(light + heat * (dark - light)) for light, dark in ((247, 8), (251, 69), (255, 148))]


def _luminance(colour: list[int]) -> float:
    """Relative luminance of an sRGB colour, from 0 to 1 (WCAG 2.1)."""
    linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
