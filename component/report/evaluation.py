"""Results of an evaluation → a JSON file, a Markdown table and figures in a folder."""

import os
from contextlib import suppress
from typing import Any

from component.embedding import open_image
from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.phrased_retrieval import mean_metrics
from component.evaluation.retrieval import RetrievalResult
from component.evaluation.retrieval_data import RetrievalData
from component.evaluation.zero_shot import ZeroShotResult
from component.ground.files import write_json, write_text
from component.metrics import RECALL_AT
from component.report.evaluation_figures import MistakeRow, draw_mistakes, draw_recall
from component.report.labels import DIRECTIONS, label
from component.report.phrasings import draw_phrasings, phrasing_rows, phrasing_table
from component.report.text_table import markdown_table, percent


def write_retrieval_report(folder: str, data: RetrievalData, result: RetrievalResult, about: dict[str, Any]) -> None:
    """Write metrics.json, metrics.md, recall.png and mistakes_*.png of both directions; with phrasings, phrasings.png.

    The figures of an earlier evaluation are removed, and the numbers are written before the figures are drawn.

    Args:
        about: what was evaluated (model, files), for metrics.json.

    Raises:
        ModuleNotFoundError: matplotlib, which draws the figures, is not installed.
    """
    mistakes = {direction: f"mistakes_{direction}.png" for direction in DIRECTIONS}
    _remove(folder, "recall.png", "phrasings.png", *mistakes.values())
    _write_metrics(folder, "metrics", _retrieval_metrics(result), retrieval_table(result), about)
    ranks = {label(name): result.ranks[direction] for direction, name in DIRECTIONS.items()}
    draw_recall(os.path.join(folder, "recall.png"), ranks)
    if result.phrased:
        draw_phrasings(os.path.join(folder, "phrasings.png"), phrasing_rows(result))
    for direction, rows in retrieval_mistakes(data, result).items():
        draw_mistakes(os.path.join(folder, mistakes[direction]), rows)


def write_zero_shot_report(folder: str, data: ClassifiedImages, result: ZeroShotResult, about: dict[str, Any]) -> None:
    """Write zero_shot.json, zero_shot.md and zero_shot_mistakes.png; else as `write_retrieval_report`.

    The names differ from those of a retrieval evaluation, so that both fit into one folder.
    """
    _remove(folder, "zero_shot_mistakes.png")
    _write_metrics(folder, "zero_shot", result.metrics, classification_table(result), about)
    draw_mistakes(os.path.join(folder, "zero_shot_mistakes.png"), zero_shot_mistakes(data, result))


def retrieval_mistakes(data: RetrievalData, result: RetrievalResult) -> dict[str, list[MistakeRow]]:
    """Direction → its mistakes, as texts and images."""
    sides = {"text": data.texts, "image": data.images}
    rows = {}
    for direction, mistakes in result.mistakes.items():
        query, gallery = (sides[kind] for kind in direction.split("_to_"))
        rows[direction] = [(query[m.query], gallery[m.first], gallery[m.right], m.rank) for m in mistakes]
    return rows


def zero_shot_mistakes(data: ClassifiedImages, result: ZeroShotResult) -> list[MistakeRow]:
    """The mistakes, as images and class names."""
    names = data.class_names
    return [(open_image(data.images[m.query]), names[m.first], names[m.right], m.rank) for m in result.mistakes]


def _remove(folder: str, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))


def _write_metrics(folder: str, name: str, metrics: dict[str, Any], table: str, about: dict[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, f"{name}.json"), {**about, **metrics})
    write_text(os.path.join(folder, f"{name}.md"), table)


def _retrieval_metrics(result: RetrievalResult) -> dict[str, Any]:
    """The metrics, and those of the phrasings if there are any."""
    if not result.phrased:
        return result.metrics
    phrased = [
        {"phrasing": one.phrasing.name, "group": one.phrasing.group, "example": one.example, **one.metrics}
        for one in result.phrased
    ]
    return {**result.metrics, "phrasings": phrased, "phrasings_mean": mean_metrics(result.phrased)}


def retrieval_table(result: RetrievalResult) -> str:
    """Markdown: recall in percent and median rank of both directions, mean recall and counts; then the phrasings."""
    metrics = result.metrics
    rows = [[name, *retrieval_cells(metrics, direction)] for direction, name in DIRECTIONS.items()]
    table = markdown_table(["", *(f"R@{k}" for k in RECALL_AT), "median rank"], rows)
    table += f"\n\nMean recall (MR): {percent(metrics['mean_recall'])}; {_counts(metrics)}\n"
    return f"{table}\n{phrasing_table(phrasing_rows(result))}\n" if result.phrased else table


def retrieval_cells(metrics: dict[str, float], direction: str) -> list[str]:
    """Recall@1/5/10 in percent and median rank of a direction."""
    recalls = [percent(metrics[f"{direction}_recall@{k}"]) for k in RECALL_AT]
    return [*recalls, f"{metrics[f'{direction}_median_rank']:g}"]


def classification_table(result: ZeroShotResult) -> str:
    """Markdown: top-1, top-5 and mean per class in percent, then the counts."""
    metrics = result.metrics
    names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    table = markdown_table(list(names.values()), [[percent(metrics[key]) for key in names]])
    return f"{table}\n\n{_counts(metrics)}\n"


def _counts(metrics: dict[str, float]) -> str:
    keys = ("texts", "images", "pairs", "classes", "bad_images")
    return ", ".join(f"{metrics[key]:,} {key.replace('_', ' ')}" for key in keys if key in metrics)
