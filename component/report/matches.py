"""Similarity → rows, a terminal table, JSON, CSV."""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from component.ground.files import new_file, write_json
from component.ground.plain_text import spreadsheet_cell
from component.report.text_table import text_table
from component.similarity import Similarity


def title(similarity: Similarity) -> str:
    """Such as "image → text"."""
    return f"{similarity.queries.kind} → {similarity.candidates.kind}"


def match_rows(similarity: Similarity, top_k: int) -> Iterator[dict[str, Any]]:
    """Yield a dict per match: task, query, rank (from 1), candidate, score, cosine."""
    for index, matches in enumerate(similarity.best(top_k)):
        for rank, match in enumerate(matches, 1):
            yield {
                "task": title(similarity),
                "query": str(similarity.queries.item(index)),
                "rank": rank,
                "candidate": str(similarity.candidates.item(match.candidate)),
                "score": round(match.score, 6),
                "cosine": round(match.cosine, 6),
            }


def terminal_table(similarity: Similarity, top_k: int, num_queries: int) -> str:
    """An aligned table of the first `num_queries` queries; the last line says how many are left out."""
    top_k = min(top_k, len(similarity.candidates) - similarity.is_among_themselves)
    rows = [
        (
            row["query"] if row["rank"] == 1 else "",
            str(row["rank"]),
            row["candidate"],
            f"{row['score']:.1%}",
            f"{row['cosine']:.3f}",
        )
        for row in islice(match_rows(similarity, top_k), num_queries * top_k)
    ]
    kinds = similarity.queries.kind, similarity.candidates.kind
    header = [kinds[0], "#", kinds[1], "score", "cosine"]
    table = text_table(header, rows, right=(1, 3, 4), paths=[i for i, name in enumerate(header) if name == "image"])
    more = len(similarity.queries) - num_queries
    return table + (f"\n… and {more:,} more" if more > 0 else "")


def write_matches_json(path: str, similarities: Sequence[Similarity], top_k: int) -> None:
    """Write the rows of all similarities as one list."""
    write_json(path, [row for similarity in similarities for row in match_rows(similarity, top_k)])


def write_matches_csv(path: str, similarities: Sequence[Similarity], top_k: int) -> None:
    """Write the rows in UTF-8 with BOM, which spreadsheets need to read Chinese; no cell is a formula."""
    with new_file(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, ["task", "query", "rank", "candidate", "score", "cosine"])
        writer.writeheader()
        for similarity in similarities:
            for row in match_rows(similarity, top_k):
                names = {key: spreadsheet_cell(row[key]) for key in ("query", "candidate")}
                writer.writerow({**row, **names})
