"""Similarity → one self-contained HTML page: heat map and best matches, readable on a phone."""

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from component.embedding import Embedded, open_image
from component.ground.plain_text import one_line
from component.report.html import data_uri, render
from component.similarity import Similarity

MOST_QUERIES = 100  # with their matches, in each part of the page
MOST_CELLS = 40  # rows and columns of the heat map


class _Item(NamedTuple):
    """A text or an image: what it is called, and the CSS class of its thumbnail, if any."""

    name: str
    image: str | None


class _Thumbnails(dict[str, str]):
    """CSS class → small copy of an image, so that each is in the page once, however often it is shown."""

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
    """HTML of one page with a part per similarity: the cosines as a heat map, and the best matches of each query.

    Pictures are in the page itself. Of a large comparison the first MOST_CELLS rows and columns and the first
    MOST_QUERIES queries are shown, and the page says so.

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
    cells = _heat_map(similarity)
    return {
        "title": f"{words[queries.kind]} → {words[candidates.kind]}",
        "num_queries": len(queries),
        "num_candidates": len(candidates),
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


def _heat_map(similarity: Similarity) -> list[list[dict[str, str]]]:
    """Text, colour and ink of each cell; none for an item with itself."""
    shown = similarity.queries.embeds[:MOST_CELLS] @ similarity.candidates.embeds[:MOST_CELLS].T
    if similarity.is_among_themselves:
        shown.fill_diagonal_(float("nan"))
    lowest, highest = shown.nan_to_num(2).min().item(), shown.nan_to_num(-2).max().item()

    def cell(value: float) -> dict[str, str]:
        if value != value:
            return {}
        heat = (value - lowest) / (highest - lowest or 1)
        return {"text": f"{value:.2f}", "colour": _colour(heat), "ink": "#fff" if heat > 0.55 else "#1c2733"}

    return [[cell(value) for value in line] for line in shown.tolist()]


def _colour(heat: float) -> str:
    """From white (0) to dark blue (1)."""
    return "#" + "".join(
        f"{round(light + heat * (dark - light)):02x}" for light, dark in ((247, 8), (251, 69), (255, 148))
    )
