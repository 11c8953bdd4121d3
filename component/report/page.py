"""Similarity → one self-contained HTML page: heat map and best matches, readable on a phone."""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice

from PIL import Image

from component.embedding import Embedded, open_image
from component.plain_text import one_line
from component.similarity import Similarity

MOST_QUERIES = 100  # with their matches, in each part of the page
MOST_CELLS = 40  # rows and columns of the heat map
_THUMBNAIL_PIXELS = 96

_STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 70rem; color: #1c2733; background: #fff;
  font: 16px/1.5 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
.note { color: #5b6875; font-size: .875rem; margin: .25rem 0 .75rem }
.scroll { overflow: auto; width: fit-content; max-width: 100%; max-height: 85vh }
.scroll, .card { border: 1px solid #dde3e9; border-radius: 8px }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .4rem; text-align: center; font-weight: normal; min-width: 2.6rem }
thead th { position: sticky; top: 0; background: #fff; z-index: 1; vertical-align: bottom }
tbody th { position: sticky; left: 0; background: #fff; text-align: left }
thead th:first-child { left: 0; z-index: 2 }
thead .text { writing-mode: vertical-rl; max-height: 9rem; overflow: hidden; display: inline-block }
tbody th .text { display: block; max-width: 7.5rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.image { display: inline-block; width: 3rem; height: 3rem; vertical-align: middle; flex: none;
  background: #f3f5f7 center / contain no-repeat; border-radius: 4px }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
.card { padding: .75rem; min-width: 0 }
.card h3 { margin: 0 0 .5rem; font-size: 1rem; display: flex; gap: .6rem; align-items: center }
.card h3 .image { width: 5.5rem; height: 5.5rem }
.card ol { margin: 0; padding: 0; list-style: none }
.card li { display: flex; gap: .6rem; align-items: center; padding: .2rem .4rem; border-radius: 4px; margin-top: 2px;
  background: linear-gradient(90deg, #cfe3f7 var(--score), #f6f8fa var(--score)) }
.name { flex: 1; min-width: 0; overflow-wrap: anywhere }
.card li .image + .name, .card h3 .image + .name { color: #5b6875; font-size: .8rem; font-weight: normal }
.number { flex: none; text-align: right; font-variant-numeric: tabular-nums; font-size: .875rem }
.number small { display: block; color: #5b6875 }
"""


def similarity_page(similarities: Sequence[Similarity], top_k: int) -> str:
    """HTML of one page with a part per similarity: the cosines as a heat map, and the best matches of each query.

    Pictures are in the page itself. Of a large comparison the first MOST_CELLS rows and columns and the first
    MOST_QUERIES queries are shown, and the page says so.

    Args:
        top_k: matches per query.
    """
    thumbnails = _Thumbnails()
    parts = [_part(similarity, top_k, thumbnails) for similarity in similarities]
    return (
        '<!DOCTYPE html>\n<html lang="zh-CN">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>图文相似度</title>\n'
        f"<style>{_STYLE}{thumbnails.style()}</style>\n</head>\n<body>\n<h1>图文相似度</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


class _Thumbnails:
    """Small copies of pictures as CSS classes, so that each is in the page once, however often it is shown."""

    def __init__(self):
        self._name_of: dict[tuple[int, int], str] = {}
        self._rules: list[str] = []

    def show(self, images: Embedded, index: int) -> str:
        key = id(images), index
        if key not in self._name_of:
            self._name_of[key] = f"i{len(self._name_of)}"
            self._rules.append(f".{self._name_of[key]}{{background-image:url({_data_uri(images.item(index))})}}")
        label = _name(images, index)
        return f'<span class="image {self._name_of[key]}" role="img" aria-label="{label}" title="{label}"></span>'

    def style(self) -> str:
        return "\n".join(self._rules)


def _data_uri(item: str | Image.Image) -> str:
    image = open_image(item)
    image.thumbnail((_THUMBNAIL_PIXELS * 2, _THUMBNAIL_PIXELS * 2))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _name(side: Embedded, index: int) -> str:
    """A text itself, the name of a picture's file, or the number of a picture without one; safe in HTML."""
    item = side.item(index)
    if not isinstance(item, str):
        return f"#{index + 1}"
    return escape(one_line(os.path.basename(item) if side.kind == "image" else item))


def _part(similarity: Similarity, top_k: int, thumbnails: _Thumbnails) -> str:
    words = {"image": "图片", "text": "文本"}
    queries, candidates = similarity.queries, similarity.candidates
    title = f"{words[queries.kind]} → {words[candidates.kind]}"
    cards = list(_cards(similarity, top_k, thumbnails))
    return (
        f'<section>\n<h2>{title}</h2>\n<p class="note">{len(queries):,} × {len(candidates):,}。'
        f"得分为在全部候选上的 softmax（余弦 × {similarity.logit_scale:.4g}），下方小字为余弦。</p>\n"
        f"{_heat_map(similarity, thumbnails)}\n"
        f"<h2>{title}：最相似的 {min(top_k, len(candidates) - similarity.is_among_themselves)} 个</h2>\n"
        f'{_cut_note(len(queries), MOST_QUERIES)}<div class="cards">\n' + "\n".join(cards) + "\n</div>\n</section>"
    )


def _cut_note(count: int, shown: int) -> str:
    return f'<p class="note">只显示前 {shown} 个，共 {count:,} 个。</p>\n' if count > shown else ""


def _heat_map(similarity: Similarity, thumbnails: _Thumbnails) -> str:
    queries, candidates = similarity.queries, similarity.candidates
    shown = queries.embeds[:MOST_CELLS] @ candidates.embeds[:MOST_CELLS].T
    if similarity.is_among_themselves:
        shown.fill_diagonal_(float("nan"))
    lowest, highest = shown.nan_to_num(2).min().item(), shown.nan_to_num(-2).max().item()

    def heading(side: Embedded, index: int) -> str:
        if side.kind == "image":
            return f"<th>{thumbnails.show(side, index)}</th>"
        return f'<th><span class="text">{_name(side, index)}</span></th>'

    def cell(row: int, column: int) -> str:
        value = shown[row, column].item()
        if value != value:  # an item with itself
            return "<td></td>"
        heat = (value - lowest) / (highest - lowest or 1)
        return f'<td style="background:{_colour(heat)};color:{"#fff" if heat > 0.55 else "#1c2733"}">{value:.2f}</td>'

    head = "".join(heading(candidates, column) for column in range(len(shown[0])))
    body = "\n".join(
        f"<tr>{heading(queries, row)}{''.join(cell(row, column) for column in range(len(shown[0])))}</tr>"
        for row in range(len(shown))
    )
    note = _cut_note(max(len(queries), len(candidates)), MOST_CELLS)
    return (
        f'{note}<div class="scroll"><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _colour(heat: float) -> str:
    """From white (0) to dark blue (1)."""
    return "#" + "".join(
        f"{round(light + heat * (dark - light)):02x}" for light, dark in ((247, 8), (251, 69), (255, 148))
    )


def _cards(similarity: Similarity, top_k: int, thumbnails: _Thumbnails) -> Iterator[str]:
    def show(side: Embedded, index: int) -> str:
        image = thumbnails.show(side, index) if side.kind == "image" else ""
        return f'{image}<span class="name">{_name(side, index)}</span>'

    for index, matches in enumerate(islice(similarity.best(top_k), MOST_QUERIES)):
        items = "\n".join(
            f'<li style="--score:{match.score:.1%}">{show(similarity.candidates, match.candidate)}'
            f'<span class="number">{match.score:.1%}<small>{match.cosine:.3f}</small></span></li>'
            for match in matches
        )
        yield f'<article class="card">\n<h3>{show(similarity.queries, index)}</h3>\n<ol>\n{items}\n</ol>\n</article>'
