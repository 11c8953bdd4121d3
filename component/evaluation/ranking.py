"""Rank one side of labelled data for each item of the other.

Shapes: n items of a side, P right pairs, Q queries, D projection width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from component.metrics import retrieval_ranks


class Side(NamedTuple):
    """The texts, images or classes that are compared.

    Attributes:
        rows: (n,) their numbers in the data.
        embeds: (n, D), L2-normalised.
        index: (P,) the item of each right pair, as an index into `rows`.
    """

    rows: Tensor
    embeds: Tensor
    index: Tensor


@dataclass(frozen=True)
class Mistake:
    """A query whose right answer is not ranked first.

    Attributes:
        query: the query; as the next two, by its number in the data.
        first: the item ranked first.
        right: the best right answer.
        rank: the rank of `right`, from 2.
    """

    query: int
    first: int
    right: int
    rank: int


def rank(queries: Side, gallery: Side, num_mistakes: int) -> tuple[Tensor, list[Mistake]]:
    """Rank the whole gallery for each item that has a right answer; the others are not queries.

    Returns:
        (Q,) the rank of each query's best right answer, from 1; and the `num_mistakes` mistakes with the worst ranks,
        worst first; equal ranks keep the order of the queries.
    """
    asked, query_index = queries.index.unique(return_inverse=True)
    query_embeds, query_rows = queries.embeds[asked], queries.rows[asked]
    ranks = retrieval_ranks(query_embeds, gallery.embeds, query_index, gallery.index)
    mistakes = []
    for query in torch.argsort(ranks, descending=True, stable=True)[:num_mistakes].tolist():
        if ranks[query] == 1:
            break
        answers = gallery.index[query_index == query]
        scores = gallery.embeds @ query_embeds[query]
        right = answers[scores[answers].argmax()]
        scores[answers] = -torch.inf  # in a tie the wrong item ranks first, as in `ranks`
        found = query_rows[query], gallery.rows[scores.argmax()], gallery.rows[right], ranks[query]
        mistakes.append(Mistake(*map(int, found)))
    return ranks, mistakes
