"""Result of a data check → one self-contained HTML page, and a CSV table of the bad images."""

import csv
import math
import os
from typing import Any

import numpy as np

from component.ground.files import new_file, write_text
from component.ground.plain_text import one_line, spreadsheet_cell
from component.report.html import data_uri, render

PAGE, BAD_IMAGES = "check_data.html", "check_data_bad_images.csv"
MOST_BARS = 40  # of the histogram of lengths
MOST_TICKS = 7  # below the histogram
MOST_BAD = 50  # images named by the page; the table has all
MOST_CUT = 40  # tokens shown of the truncated part of a text
IMAGE_SIDE = 336  # pixels
# The reasons of `BadImageError` in the language of the page.
REASONS = {
    "no such file": "文件不存在",
    "bad_filename": "文件名无效",
    "not_a_file": "不是普通文件",
    "too_large": "文件太大",
    "empty": "空文件",
    "truncated": "文件不完整",
    "broken": "文件损坏",
    "undecodable": "无法解码",
    "no_plugin": "缺少解码插件",
    "other_format": "不支持的格式",
    "not_image": "不是图片",
    "text": "是文本，不是图片",
    "not base64": "不是 base64",
    "the row has no image": "这一行没有图片",
    "the shard has changed since it was indexed; start again": "分片在建索引之后变了，请重新开始",
    "the shard was removed since it was indexed; start again": "分片在建索引之后被移走了，请重新开始",
    "the file has changed since it was indexed; start again": "文件在建索引之后变了，请重新开始",
    "the file was removed since it was indexed; start again": "文件在建索引之后被移走了，请重新开始",
    "svg": "是 SVG，不是位图",
    "html": "是网页，不是图片",
    "too_many_pixels": "像素太多",
    "too_many_scans": "扫描次数太多",
    "long_and_narrow": "太狭长",
}


def write_data_check(folder: str, found) -> str:
    """Write check_data.html and check_data_bad_images.csv, and return the path of the page.

    Args:
        found: the `DataCheck` of component.training.check_data.
    """
    os.makedirs(folder, exist_ok=True)
    bad = [(table.file, *entry) for table in found.tables for entry in table.bad]
    with new_file(os.path.join(folder, BAD_IMAGES), newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("table", "filename", "reason"))
        writer.writerows([spreadsheet_cell(one_line(cell)) for cell in row] for row in bad)
    path = os.path.join(folder, PAGE)
    write_text(path, data_check_page(found))
    return path


def data_check_page(found) -> str:
    """HTML: counts, lengths of the texts, repetitions, bad images, and some pairs as the model sees them."""
    return render(
        "data_check.html",
        title="数据检查",
        card_width="10rem",
        found=found,
        tables=[
            (
                table,
                found.num_cut(table),
                _histogram(table.texts.lengths, found),
                [(name, _in_chinese(name, reason)) for name, reason in table.bad[:MOST_BAD]],
            )
            for table in found.tables
        ],
        samples=[
            (
                sample.filename,
                sample.image and data_uri(sample.image, IMAGE_SIDE),
                sample.reason and _in_chinese(sample.filename, sample.reason),
                _marked(sample.tokens, found),
            )
            for sample in found.samples
        ],
        most_bad=MOST_BAD,
        table_of_bad=BAD_IMAGES,
    )


def _in_chinese(filename: str, reason: str) -> str:
    """The reason without the file name, its first word in Chinese; the detail stays as the library gives it."""
    word, _, detail = reason.removeprefix(f"{filename}: ").partition(": ")
    return REASONS.get(word, word) + (f"（{detail}）" if detail else "")


def _histogram(lengths: np.ndarray, found) -> dict[str, Any]:
    """Bars of equal width in tokens, from the shortest; no bar spans max_seq_length."""
    longest, limit = int(lengths.max()), found.max_seq_length
    width = math.ceil(longest / MOST_BARS)
    # A bar ends at max_seq_length, so that the texts of each are all truncated or all whole.
    first = limit % width - width
    edges = np.arange(first, longest + width, width) + 1
    counts = np.histogram(lengths, [*edges, edges[-1] + width])[0]
    highest = max(int(counts.max()), 1)
    bars = [
        {
            "count": int(count),
            "height": 100 * count / highest,
            "is_cut": int(edge) > limit,
            "name": f"{max(int(edge), 1)}–{int(edge) + width - 1}" if width > 1 else f"{int(edge)}",
        }
        for edge, count in zip(edges, counts, strict=True)
        if edge + width > 1 and edge <= longest
    ]
    every = math.ceil(len(bars) / MOST_TICKS)
    ticks = [(100 * (index + 0.5) / len(bars), bars[index]["name"]) for index in range(0, len(bars), every)]
    quantiles = {share: int(np.quantile(lengths, share, method="inverted_cdf")) for share in (0.5, 0.9, 0.99)}
    return {"bars": bars, "ticks": ticks, "highest": highest, "quantiles": quantiles, "longest": longest}


def _marked(tokens: list[str], found) -> dict[str, Any]:
    """The tokens of a text, each marked as kept, unknown or cut. The model gets the first ones and the last, [SEP]."""
    kept = len(tokens) if len(tokens) <= found.max_seq_length else found.max_seq_length - 1
    inside, cut, end = tokens[:kept], tokens[kept:-1], tokens[-1:]
    marked = [(token, "unk" if token == found.unk_token else "") for token in inside]
    if kept < len(tokens):
        marked += [(token, "cut") for token in cut[:MOST_CUT]]
        marked += [(f"… {len(cut) - MOST_CUT}", "cut")] if len(cut) > MOST_CUT else []
        marked += [(token, "") for token in end]
    return {"tokens": marked, "num_cut": len(cut) if kept < len(tokens) else 0}
