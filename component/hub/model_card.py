"""The model card: README.md beside the weights, by which the Hub shows, finds and loads them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from component.ground.files import write_text

_TEMPLATE = Path(__file__).with_suffix(".md")


def write_card(
    folder: str,
    name: str,
    place: str,
    dimensions: int,
    facts: dict[str, Any],
    results: str,
    recalls: dict[str, float],
    test_data: str | None,
    model_license: str | None = None,
    base_models: Sequence[str] = (),
) -> None:
    """Write README.md, whole or not at all.

    Args:
        folder: where the weights are.
        place: where its examples load the model from.
        dimensions: of an embedding.
        facts: how the model came to be, for a table.
        results: what was measured, as Markdown.
        recalls, test_data: the same for the metadata, shares between 0 and 1 and the name of the data.
        base_models: names of the Hub.
    """
    data = ModelCardData(
        language="zh",
        license=model_license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=list(base_models) or None,
        tags=["clip", "chinese", "image-text-retrieval"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="zero-shot-retrieval",
                dataset_type="image-text-pairs",
                dataset_name=test_data,
                metric_type="recall",
                metric_name=key,
                metric_value=value,
            )
            for key, value in recalls.items()
        ]
        or None,
    )
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        name=name, place=place, dimensions=dimensions, facts=card_table("", "", facts), results=results
    )
    write_text(os.path.join(folder, "README.md"), f"---\n{data.to_yaml()}\n---\n\n{text}")


def card_table(left: str, right: str, rows: dict[str, Any]) -> str:
    """A Markdown table of two columns."""
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def recalls_of(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The recalls among metrics, without the prefix of their names."""
    return {key.removeprefix(prefix): value for key, value in metrics.items() if "recall" in key and value is not None}


def license_of(path: str) -> str | None:
    """The licence that the model card of a folder states; None: none, or no card."""
    with suppress(Exception):  # a README.md may be anything
        return ModelCard.load(os.path.join(path, "README.md")).data.license
    return None


def short_name(path: str) -> str:
    """A name of the Hub as it is, a folder by the last two parts of its path: run/checkpoint-final."""
    return "/".join(os.path.normpath(path).split(os.sep)[-2:])


def last_part(paths: str | Sequence[str]) -> str:
    """The name of a file or folder, or of the first and last of several: where they lie is nobody's business."""
    names = [os.path.basename(os.path.normpath(path)) for path in ([paths] if isinstance(paths, str) else paths)]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
