"""What a gallery answered → a terminal table, JSON, an HTML page; and what indexing found."""

import csv
from typing import TYPE_CHECKING, Any

from component.ground.files import new_file
from component.ground.plain_text import one_line, spreadsheet_cell
from component.image.load import BadImageError, load_image
from component.report.html import data_uri, render
from component.report.text_table import text_table
from component.search.gallery import Gallery
from component.search.query import Hit
from component.search.thumbnails import original

if TYPE_CHECKING:  # whoever only asks a gallery does without what reads tables: pandas and pyarrow take 60 MB
    from component.search.index import IndexReport


def hits_table(hits: list[Hit]) -> str:
    """Id, path, score, and the share of random texts that fit the picture less."""
    if not hits:
        return "no picture fits"
    rows = [
        [
            str(number),
            str(hit.image.row),
            hit.image.path + (f" (+{len(hit.duplicates)})" if hit.duplicates else ""),
            f"{hit.score:.3f}",
            f"{hit.place:.0%}",
        ]
        for number, hit in enumerate(hits, 1)
    ]
    return text_table(["#", "id", "picture", "score", "beats"], rows, right=(0, 1, 3, 4), paths=(2,), widest=80)


def hits_as_json(answers: dict[str, list[Hit]]) -> dict[str, list[dict[str, Any]]]:
    """Query → its hits; see `component.search.query.Hit` for the figures."""
    return {
        query: [
            {
                "id": hit.image.row,
                "path": hit.image.path,
                "score": round(hit.score, 6),
                "beats": round(hit.place, 4),
                "duplicates": [image.path for image in hit.duplicates],
            }
            for hit in hits
        ]
        for query, hits in answers.items()
    }


def hits_page(answers: dict[str, list[Hit]]) -> str:
    """HTML of one page with the pictures of each answer in it."""
    parts = []
    for query, hits in answers.items():
        cards = []
        for hit in hits:
            try:
                thumbnail = data_uri(load_image(original(hit.image)))
            except BadImageError as error:
                thumbnail, reason = None, one_line(error)
            else:
                reason = ""
            cards.append({"hit": hit, "thumbnail": thumbnail, "reason": reason})
        parts.append({"query": query, "cards": cards})
    return render("hits.html", title="找图", card_width="12rem", parts=parts)


def index_summary(report: "IndexReport", gallery: Gallery) -> str:
    """One line for people."""
    words = {
        "unchanged": report.unchanged,
        "added": report.added,
        "moved or touched": report.moved,
        "gone": report.gone,
        "cannot be read": len(report.bad_images) + report.known_bad,
        "vanished meanwhile": report.vanished,
    }
    told = ", ".join(f"{count:,} {word}" for word, count in words.items() if count or word == "added")
    return f"{gallery.counts()['images']:,} pictures in {one_line(gallery.folder)}: {told}"


def bad_images_csv(path: str, gallery: Gallery) -> None:
    """Write path and reason of every picture that cannot be read."""
    with new_file(path, newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(map(spreadsheet_cell, entry) for entry in gallery.bad_images().items())
