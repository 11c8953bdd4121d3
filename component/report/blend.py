"""Report measured blends: a table, and a model card with curves for the best one."""

import os
from dataclasses import asdict
from typing import Any

from component.blend import Ends
from component.evaluation.blend import MeasuredBlends
from component.ground.files import write_json
from component.hub.model_card import Card, card_table, last_part, license_of, recalls_of, short_name, write_card
from component.report.figures import new_figure
from component.report.labels import label
from component.report.text_table import markdown_table, percent

SHOWN = {"MR": "mean_recall", "R@1": "text_to_image_recall@1"}
CURVES = "blend.png"


def blend_table(measured: MeasuredBlends) -> str:
    """A row for each alpha with mean recall and text → image R@1 of both data sets in percent; the best is marked."""
    has_kept = measured.best.kept is not None
    header = ["alpha", *(f"own {name}" for name in SHOWN)]
    header += [*(f"kept {name}" for name in SHOWN), "mean of MR"] if has_kept else []
    rows = []
    for blend in measured.blends:
        cells = [f"{blend.alpha:g}{' (best)' if blend is measured.best else ''}"]
        cells += [percent(metrics[key]) for metrics in (blend.own, blend.kept) if metrics for key in SHOWN.values()]
        rows.append([*cells, percent(blend.score)] if has_kept else cells)
    return markdown_table(header, rows)


def draw_blend(path: str, measured: MeasuredBlends) -> None:
    """Draw mean recall over alpha: a curve for each data set, their mean, which decides, and a line at the best alpha.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    with new_figure(path, figsize=(6, 4), layout="constrained") as (_, axes):
        alphas = [blend.alpha for blend in measured.blends]
        for name in ("own", "kept"):
            if getattr(measured.best, name):
                recalls = [100 * getattr(blend, name)["mean_recall"] for blend in measured.blends]
                axes.plot(alphas, recalls, marker="o", label=label(f"{name} data"))
        if measured.best.kept:
            scores = [100 * blend.score for blend in measured.blends]
            axes.plot(alphas, scores, color="black", linewidth=2.5, label=label("mean of both: decides"))
        best = f"{label('best alpha')}: {measured.best.alpha:g}"
        axes.axvline(measured.best.alpha, color="gray", linestyle=":", label=best)
        axes.set(xlabel=label("alpha (0: before tuning, 1: after)"), ylabel=label("mean recall (%)"))
        axes.grid(alpha=0.3)
        axes.legend()


def write_blend_report(
    folder: str, ends: Ends, measured: MeasuredBlends, about: dict[str, Any], with_curves: bool = True
) -> None:
    """Write the model card, blend.json and blend.png of the best blend, which is in `folder`.

    Args:
        about: name, before and after (paths), test_file and keep_file (None without).
        with_curves: draw blend.png.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    best = measured.best
    about = {**about, "distance": ends.distance, "best": best.alpha}
    write_json(os.path.join(folder, "blend.json"), {**about, "blends": [asdict(blend) for blend in measured.blends]})
    if with_curves:
        draw_blend(os.path.join(folder, CURVES), measured)
    rule = "mean recall of own and kept data" if best.kept else "mean recall of the own data"
    model_license = license_of(about["after"])
    facts = {
        "混合 · blend": " + ".join(
            f"{weight:g} · {short_name(path)}"
            for weight, path in ((1 - best.alpha, about["before"]), (best.alpha, about["after"]))
        ),
        "距离 · distance": f"{ends.distance:.2%} of the length of the weights before tuning",
        "选取 · chosen by": f"the highest {rule}, of {len(measured.blends)} alphas, measured on the data below",
        "许可 · licence": model_license or "未填写 · not stated",
    }
    results = [blend_table(measured)]
    for metrics, files in ((best.own, about["test_file"]), (best.kept, about["keep_file"])):
        if metrics:
            counts = f"{metrics['texts']:,} texts, {metrics['images']:,} images"
            scores = {key: f"{value:.1%}" for key, value in recalls_of(metrics).items()}
            results.append(card_table(last_part(files), counts, scores))
    card = Card(
        name=about["name"],
        load_path=f"path/to/{about['name']}",
        dimensions=ends.model.config.projection_dim,
        facts=facts,
        results="\n\n".join([*results, *([f"![recall by alpha]({CURVES})"] if with_curves else [])]),
        recalls=recalls_of(best.own),
        test_data=last_part(about["test_file"]),
        model_license=model_license,
    )
    write_card(folder, card)
