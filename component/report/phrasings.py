"""How well images are found when the texts are asked in other words: a table and a figure."""

from typing import NamedTuple

from component.evaluation.phrased_retrieval import mean_metrics
from component.evaluation.phrasings import CHANGES
from component.evaluation.retrieval import RetrievalResult
from component.ground.plain_text import one_line
from component.metrics import RECALL_AT
from component.report.figures import new_figure
from component.report.labels import label
from component.report.text_table import markdown_table

PLAIN, MEAN = "as they are", "mean"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: a phrasing; PLAIN for the texts as they are; MEAN of a group.
        texts: number of texts that the phrasing changes, which are those that count; of a group: all of these.
        recalls: recall@1/5/10 in percent, () if there are no texts.
        plain: recall@1 in percent of the same texts as they are; None if it says nothing.
    """

    name: str
    group: str
    example: str
    texts: int
    recalls: tuple[float, ...]
    plain: float | None


def phrasing_rows(result: RetrievalResult) -> list[Row]:
    """The texts as they are, then for each group its phrasings and their mean."""
    metrics = result.metrics
    recalls = {f"recall@{k}": metrics[f"text_to_image_recall@{k}"] for k in RECALL_AT}
    rows = [_row(PLAIN, "", {"texts": metrics["texts"], **recalls})]
    for group, means in mean_metrics(result.phrased).items():
        members = (one for one in result.phrased if one.phrasing.group == group)
        rows += [_row(one.phrasing.name, group, one.metrics, one.example) for one in members]
        rows.append(_row(MEAN, group, means))
    return rows


def _row(name: str, group: str, metrics: dict[str, float], example: str = "") -> Row:
    recalls = tuple(100 * metrics[f"recall@{k}"] for k in RECALL_AT if f"recall@{k}" in metrics)
    plain = 100 * metrics["plain_recall@1"] if "plain_recall@1" in metrics else None
    return Row(one_line(name), group, one_line(example), metrics["texts"], recalls, plain)


def phrasing_table(rows: list[Row]) -> str:
    """Markdown: recalls of each row in percent."""
    cells = [
        [row.name.replace("|", "\\|"), row.group, f"{row.texts:,}"]
        + ([f"{recall:.1f}" for recall in row.recalls] or [""] * len(RECALL_AT))
        + ["" if row.plain is None else f"{row.plain:.1f}"]
        for row in rows
    ]
    return markdown_table(["", "group", "texts", *(f"R@{k}" for k in RECALL_AT), f"R@1 {PLAIN}"], cells)


def draw_phrasings(path: str, rows: list[Row]) -> None:
    """Draw R@1 of each row as a bar, with a mark where the same texts are as they are.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    rows = [row for row in rows if row.recalls]
    with new_figure(path, has_texts=True, figsize=(6, 0.9 + 0.28 * len(rows)), layout="constrained") as (_, axes):
        names = [_label(row) for row in rows]
        bars = axes.barh(range(len(rows)), [row.recalls[0] for row in rows])
        for place, row in enumerate(rows):
            has_room = row.recalls[0] > 12  # for its number, which next to the bar could meet the mark
            where = dict(ha="right", color="white") if has_room else dict(ha="left")
            axes.text(row.recalls[0], place, f" {row.recalls[0]:.1f} ", va="center_baseline", fontsize=8, **where)
            bars[place].set_color("#444" if row.name in (PLAIN, MEAN) else "#1f6fb2")
            if row.plain is not None:
                axes.plot([row.plain] * 2, [place - 0.4, place + 0.4], color="#b4500f")
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.set(xlabel=label("text → image R@1 (%); the mark: the same texts as they are"), xlim=(0, 103))


def _label(row: Row) -> str:
    name = label(row.name) if row.name in (PLAIN, MEAN, *CHANGES) else row.name.replace("$", r"\$")
    return f"{name}, {row.group}" if row.name == MEAN and row.group else name
