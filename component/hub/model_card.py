"""The model card: a README.md next to the weights, from which the Hub shows, finds and loads them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from component.ground.files import write_text
from component.hub.pretrained import find_file, find_pretrained

_TEMPLATES = {True: Path(__file__).with_suffix(".md"), False: Path(__file__).with_name("text_model_card.md")}


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Args:
        name: title of the card.
        load_path: path or Hub name from which the examples load the model.
        dimensions: of an embedding.
        facts: how the model was made; becomes a table.
        results: what was measured, as Markdown.
        recalls: metric → value between 0 and 1, for the metadata.
        test_data: name of the data of the recalls.
        model_license: as the Hub spells it.
        base_models: Hub names.
        has_image_half: False for a text tower alone.
    """

    name: str
    load_path: str
    dimensions: int
    facts: dict[str, Any]
    results: str
    recalls: dict[str, float]
    test_data: str | None = None
    model_license: str | None = None
    base_models: Sequence[str] = ()
    has_image_half: bool = True


def write_card(folder: str, card: Card) -> None:
    """Write README.md atomically into the folder of the weights."""
    data = ModelCardData(
        language="zh",
        license=card.model_license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification" if card.has_image_half else "feature-extraction",
        base_model=list(card.base_models) or None,
        tags=["clip", "chinese", "image-text-retrieval"],
        model_name=card.name,
        eval_results=[
            EvalResult(
                task_type="zero-shot-retrieval",
                dataset_type="image-text-pairs",
                dataset_name=card.test_data,
                metric_type="recall",
                metric_name=key,
                metric_value=value,
            )
            for key, value in card.recalls.items()
        ]
        or None,
    )
    text = (
        _TEMPLATES[card.has_image_half]
        .read_text(encoding="utf-8")
        .format(
            name=card.name,
            load_path=card.load_path,
            dimensions=card.dimensions,
            facts=card_table("", "", card.facts),
            results=card.results,
        )
    )
    write_text(os.path.join(folder, "README.md"), f"---\n{data.to_yaml()}\n---\n\n{text}")


def card_table(left: str, right: str, rows: dict[str, Any]) -> str:
    """A Markdown table of two columns."""
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def recalls_of(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The recalls among the metrics, with `prefix` removed from their names."""
    return {key.removeprefix(prefix): value for key, value in metrics.items() if "recall" in key and value is not None}


def license_of(path: str) -> str | None:
    """The licence stated by the model card of a folder or Hub name; None if there is no card or it states none."""
    with suppress(Exception):  # a README.md can contain anything
        # Not `ModelCard.load` of a path in the folder: if there is no such file, it asks the Hub for that name.
        if card := find_file(find_pretrained(path), "README.md"):
            return ModelCard.load(card).data.license
    return None


def short_name(path: str) -> str:
    """A Hub name unchanged; the last two components of a folder's path: run/checkpoint-final."""
    return "/".join(os.path.normpath(path).split(os.sep)[-2:])


def last_part(paths: str | Sequence[str]) -> str:
    """The name of a file or folder, or of the first and last of several. The path before it is not published."""
    names = [os.path.basename(os.path.normpath(path)) for path in ([paths] if isinstance(paths, str) else paths)]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
