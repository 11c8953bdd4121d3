"""Results of an evaluation → one self-contained HTML page, readable on a phone."""

import math
from collections.abc import Sequence
from typing import Any

from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.retrieval import RetrievalResult
from component.evaluation.retrieval_data import RetrievalData
from component.evaluation.zero_shot import ZeroShotResult
from component.ground.plain_text import one_line
from component.metrics import RECALL_AT, class_accuracies
from component.report.evaluation import retrieval_cells, retrieval_mistakes, zero_shot_mistakes
from component.report.evaluation_figures import MistakeRow, recall_curve
from component.report.html import data_uri, render
from component.report.labels import CHINESE, DIRECTIONS
from component.report.phrasings import phrasing_rows
from component.report.text_table import percent

COLOURS = ("#1f6fb2", "#b4500f")
CHART = (400, 240)  # of the SVG: the area of the curves


def retrieval_page(data: RetrievalData, result: RetrievalResult, about: dict[str, Any]) -> str:
    """HTML: recalls, recall curves, phrasings, and the hardest mistakes of both directions, with images."""
    metrics = result.metrics
    header = ["", *(f"R@{k}" for k in RECALL_AT), "排名中位数"]
    names = {direction: CHINESE[name] for direction, name in DIRECTIONS.items()}
    mistakes = retrieval_mistakes(data, result)
    return _page(
        about,
        header=header,
        rows=[[name, *retrieval_cells(metrics, direction)] for direction, name in names.items()],
        summary=f"平均召回率（MR）{percent(metrics['mean_recall'])}%；{metrics['texts']:,} 条文本，"
        f"{metrics['images']:,} 张图片，{metrics['pairs']:,} 对；读不了的图片 {metrics['bad_images']:,} 张",
        chart=_chart({name: result.ranks[direction] for direction, name in names.items()}),
        phrasings=phrasing_rows(result) if result.phrased else [],
        mistakes=[(f"{name}：错得最远的", _cells(mistakes[direction])) for direction, name in names.items()],
    )


def zero_shot_page(data: ClassifiedImages, result: ZeroShotResult, about: dict[str, Any]) -> str:
    """HTML: accuracies, the accuracy of each class, worst first, and the hardest mistakes, with images."""
    metrics = result.metrics
    classes, accuracies = class_accuracies(result.ranks, result.labels)
    counts = result.labels.bincount()
    order = accuracies.argsort(stable=True).tolist()
    return _page(
        about,
        header=["top-1", "top-5", "各类平均"],
        rows=[[percent(metrics[key]) for key in ("top1", "top5", "mean_per_class")]],
        summary=f"{metrics['images']:,} 张图片，{metrics['classes']:,} 类；读不了的图片 {metrics['bad_images']:,} 张",
        mistakes=[("错得最远的", _cells(zero_shot_mistakes(data, result)))],
        classes=[
            (one_line(data.class_names[classes[i]]), int(counts[classes[i]]), 100 * accuracies[i].item())
            for i in order
        ],
    )


def _page(about: dict[str, Any], **values) -> str:
    names = {
        "model": "模型",
        "test_data": "测试数据",
        "image_path": "图片",
        "phrasings_file": "问法",
        "keep_list": "保留的图文对",
    }
    facts = [(names[key], one_line(value)) for key, value in about.items() if value]
    return render(
        "evaluation.html",
        title="评测结果",
        card_width="20rem",
        **{"chart": None, "classes": [], "phrasings": [], "chinese": CHINESE, "about": facts, **values},
    )


def _cells(mistakes: Sequence[MistakeRow]) -> list[dict[str, Any]]:
    """Each mistake as (caption, text, data URI of an image) of its three cells; text or image is None."""
    cells = []
    for query, first, right, rank in mistakes:
        named = (("查询", query), ("排在第一", first), (f"正确，第 {rank:,} 名", right))
        cells.append(
            [
                (caption, one_line(item), None) if isinstance(item, str) else (caption, None, data_uri(item))
                for caption, item in named
            ]
        )
    return cells


def _chart(ranks: dict[str, Any]) -> dict[str, Any]:
    """What the SVG of recall over k (logarithmic) shows, in its own units."""
    width, height = CHART
    curves = {name: recall_curve(rank) for name, rank in ranks.items()}
    most = max(len(curve) for curve in curves.values())

    def place(k: int, recall: float) -> tuple[float, float]:
        return round(width * math.log(k) / math.log(max(most, 2)), 1), round(height * (1 - recall / 100), 1)

    return {
        "width": width,
        "height": height,
        "ticks": [(k, place(k, 0)[0]) for k in (1, 5, 10, 100, 1000) if k <= most],
        "lines": [(recall, place(1, recall)[1]) for recall in (0, 25, 50, 75, 100)],
        "curves": [
            {
                "name": name,
                "colour": colour,
                "points": " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve)),
                "marked": [(k, *place(k, recall), recall) for k, recall in curve if k in RECALL_AT],
            }
            for colour, (name, curve) in zip(COLOURS, curves.items(), strict=True)
        ],
    }
