"""What an evaluation found → metrics.json, a Markdown table, and pictures in a folder."""

import os
from contextlib import suppress
from typing import Any

from component.embedding import open_image
from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.retrieval import RetrievalResult
from component.evaluation.retrieval_data import RetrievalData
from component.evaluation.zero_shot import ZeroShotResult
from component.ground.files import write_json, write_text
from component.metrics import RECALL_AT
from component.report.figures import draw_mistakes, draw_recall
from component.report.text_table import markdown_table

DIRECTIONS = {"text_to_image": "text → image", "image_to_text": "image → text"}
FIGURES = ("recall.png", "mistakes.png", *(f"mistakes_{direction}.png" for direction in DIRECTIONS))


def write_retrieval_report(folder: str, data: RetrievalData, result: RetrievalResult, about: dict[str, Any]) -> None:
    """Write metrics.json, metrics.md, recall.png, mistakes_text_to_image.png and mistakes_image_to_text.png.

    The numbers are written before the figures; those of an earlier evaluation go.

    Args:
        about: what was evaluated (model, files), for metrics.json.

    Raises:
        ModuleNotFoundError: matplotlib, which draws the pictures, is not installed.
    """
    _write_metrics(folder, result.metrics, retrieval_table(result.metrics), about)
    draw_recall(os.path.join(folder, "recall.png"), {name: result.ranks[key] for key, name in DIRECTIONS.items()})
    sides = {"text": data.texts, "image": data.images}
    for direction, mistakes in result.mistakes.items():
        query, gallery = (sides[kind] for kind in direction.split("_to_"))
        rows = [(query[m.query], gallery[m.first], gallery[m.right], m.rank) for m in mistakes]
        draw_mistakes(os.path.join(folder, f"mistakes_{direction}.png"), rows)


def write_zero_shot_report(folder: str, data: ClassifiedImages, result: ZeroShotResult, about: dict[str, Any]) -> None:
    """Write metrics.json, metrics.md and mistakes.png; arguments and errors as in `write_retrieval_report`."""
    _write_metrics(folder, result.metrics, classification_table(result.metrics), about)
    names = data.class_names
    rows = [(open_image(data.images[m.query]), names[m.first], names[m.right], m.rank) for m in result.mistakes]
    draw_mistakes(os.path.join(folder, "mistakes.png"), rows)


def _write_metrics(folder: str, metrics: dict[str, float], table: str, about: dict[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name in FIGURES:  # of an earlier evaluation: without figures is better than with those of other numbers
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    write_json(os.path.join(folder, "metrics.json"), {**about, **metrics})
    write_text(os.path.join(folder, "metrics.md"), table)


def retrieval_table(metrics: dict[str, float]) -> str:
    """Recall in percent and median rank of both directions; below them the mean recall and what was compared."""
    rows = [
        [name, *(f"{100 * metrics[f'{direction}_recall@{k}']:.1f}" for k in RECALL_AT)]
        + [f"{metrics[f'{direction}_median_rank']:g}"]
        for direction, name in DIRECTIONS.items()
    ]
    table = markdown_table(["", *(f"R@{k}" for k in RECALL_AT), "median rank"], rows)
    return f"{table}\n\nMean recall (MR): {100 * metrics['mean_recall']:.1f}; {_counts(metrics)}\n"


def classification_table(metrics: dict[str, float]) -> str:
    """Top-1, top-5 and mean per class in percent; below them what was classified."""
    names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    table = markdown_table(list(names.values()), [[f"{100 * metrics[key]:.1f}" for key in names]])
    return f"{table}\n\n{_counts(metrics)}\n"


def _counts(metrics: dict[str, float]) -> str:
    keys = ("texts", "images", "pairs", "classes", "bad_images")
    return ", ".join(f"{metrics[key]:,} {key.replace('_', ' ')}" for key in keys if key in metrics)
