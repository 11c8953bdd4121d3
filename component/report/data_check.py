"""What a look at the data found → one self-contained HTML page, and a table of the bad images."""

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
MOST_BAD = 50  # images that the page names; the table has all
MOST_CUT = 40  # tokens shown of what is cut
IMAGE_SIDE = 336  # pixels


def write_data_check(folder: str, found) -> str:
    """Write check_data.html, and check_data_bad_images.csv where there are bad images; the path of the page.

    Args:
        found: what `component.training.check_data.check_data` gives.
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
    """HTML of what was found: the counts, the lengths of the texts, what repeats, what is bad, and some pairs."""
    return render(
        "data_check.html",
        title="数据检查",
        card_width="10rem",
        found=found,
        tables=[(table, found.num_cut(table), _histogram(table.texts.lengths, found)) for table in found.tables],
        samples=[
            (sample, sample.image and data_uri(sample.image, IMAGE_SIDE), _marked(sample.tokens, found))
            for sample in found.samples
        ],
        most_bad=MOST_BAD,
        table_of_bad=BAD_IMAGES,
    )


def _histogram(lengths: np.ndarray, found) -> dict[str, Any]:
    """Bars of equal width in tokens, from the shortest; a bar lies on one side of max_seq_length."""
    longest, limit = int(lengths.max()), found.max_seq_length
    width = math.ceil(longest / MOST_BARS)
    # The bars end where the cut is, so that each is cut as a whole or not at all.
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
    places = {share: int(np.quantile(lengths, share, method="inverted_cdf")) for share in (0.5, 0.9, 0.99)}
    return {"bars": bars, "places": places, "longest": longest}


def _marked(tokens: list[str], found) -> dict[str, Any]:
    """The text's tokens with what happens to each: the model gets the first ones, and then the last, [SEP]."""
    kept = len(tokens) if len(tokens) <= found.max_seq_length else found.max_seq_length - 1
    inside, cut, end = tokens[:kept], tokens[kept:-1], tokens[-1:]
    marked = [(token, "unk" if token == found.unk_token else "") for token in inside]
    if kept < len(tokens):
        marked += [(token, "cut") for token in cut[:MOST_CUT]]
        marked += [(f"… {len(cut) - MOST_CUT}", "cut")] if len(cut) > MOST_CUT else []
        marked += [(token, "") for token in end]
    return {"tokens": marked, "num_cut": len(cut) if kept < len(tokens) else 0}
