"""Answers of a gallery → a terminal table and an HTML page; what indexing found → lines for people."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from component.ground.files import new_file
from component.ground.plain_text import one_line, shown_path, spreadsheet_cell
from component.report.text_table import text_table

if TYPE_CHECKING:  # a query to a running server needs neither torch nor pandas
    from component.gallery.reader import Gallery
    from component.search.settle import IndexReport
    from component.search.vector_files import Written


def answer_table(answer: dict[str, Any]) -> str:
    """Id, path and score of each hit (see `Answer.as_json`), and the number of images folded into it."""
    hits = answer["hits"]
    if not hits:
        return "no image fits"
    rows = [
        [
            str(number),
            str(hit["id"]),
            hit["path"] + (f" (+{len(hit['duplicates'])})" if hit["duplicates"] else ""),
            f"{hit['score']:.3f}",
        ]
        for number, hit in enumerate(hits, 1)
    ]
    table = text_table(["#", "id", "image", "score"], rows, right=(0, 1, 3), paths=(2,), widest=80)
    return f"probably not in the gallery; the nearest:\n{table}" if answer["probably_absent"] else table


def answers_page(answers: dict[str, dict[str, Any]], gallery: Gallery) -> str:
    """HTML of one page that contains the images of each answer (query → answer, see `Answer.as_json`)."""
    from component.image.load import load_image
    from component.image.reading import BadImageError
    from component.report.html import data_uri, render
    from component.search.thumbnails import original

    parts = []
    for query, answer in answers.items():
        cards = []
        for hit in answer["hits"]:
            image, thumbnail, reason = gallery.image(hit["id"]), None, "deleted"
            try:
                thumbnail = image and data_uri(load_image(original(image)))
            except BadImageError as error:
                reason = one_line(error)
            cards.append({"hit": hit, "thumbnail": thumbnail, "reason": reason})
        parts.append({"query": query, "probably_absent": answer["probably_absent"], "cards": cards})
    return render("hits.html", title="找图", card_width="12rem", parts=parts)


def index_summary(report: IndexReport, gallery: Gallery) -> str:
    """What an update did, what it skipped and what to do about absent images; for people."""
    numbers = {
        "unchanged": report.unchanged,
        "added": report.added,
        "moved or touched": report.moved,
        "copies": report.copies,
        "deleted": report.deleted,
        "cannot be decoded": len(report.bad_images) + report.known_bad,
        "unreadable": len(report.unreadable),
        "vanished meanwhile": report.vanished,
    }
    parts = [f"{count:,} {what}" for what, count in numbers.items() if count or what == "added"]
    counts, folder = gallery.counts(), shown_path(gallery.folder)
    lines = [f"{counts['images']:,} images in {folder}: {', '.join(parts)}"]
    if report.not_embedded:
        lines.append(f"the vectors of {report.not_embedded:,} of the added images were there already")
    if not counts["images"] and not report.bad_images and not report.unreadable:
        lines.append(
            "no image was found: --images takes folders, image files, tables (whose file names are relative to "
            "--image_path) and .tar shards"
        )
    if report.passed_over:
        lines.append("skipped: " + ", ".join(f"{count:,} {what}" for what, count in report.passed_over.items()))
    for path, reason in list(report.unreadable.items())[:3]:
        lines.append(f"unreadable: {shown_path(path)} ({reason}); the next index tries again")
    if report.absent:
        lines.append(
            f"{report.absent:,} images were not found and stay in the gallery, because their disk may be away. If "
            f"they are deleted: python search_image.py index --gallery {folder} --forget FOLDER"
        )
    return "\n".join(lines)


def vectors_line(written: Written) -> str:
    """What became of one shard; for people."""
    also = f", {len(written.bad_images):,} cannot be decoded" if written.bad_images else ""
    also += f", {written.left_out:,} left out by the keep-list" if written.left_out else ""
    state = "" if written.is_new else " (there already)"
    return f"{written.images:,} vectors in {shown_path(written.path)}{also}{state}"


def bad_images_csv(path: str, bad_images: Mapping[str, str]) -> None:
    """Write path and reason of each image that cannot be decoded."""
    with new_file(path, newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(map(spreadsheet_cell, entry) for entry in bad_images.items())
