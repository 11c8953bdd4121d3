"""The queries with the worst mistakes, and what was ranked first instead."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistake:
    """A query whose right answer is not ranked first; the fields are indices into queries and gallery.

    Attributes:
        query: the query.
        first: the item ranked first.
        right: the best right answer.
        rank: the rank of `right`, from 2.
    """

    query: int
    first: int
    right: int
    rank: int

    def renumbered(self, queries: Tensor, gallery: Tensor) -> "Mistake":
        """The same mistake with query i replaced by queries[i] and gallery item i by gallery[i]."""
        return Mistake(int(queries[self.query]), int(gallery[self.first]), int(gallery[self.right]), rank=self.rank)


def hardest_mistakes(
    query_embeds: Tensor, gallery_embeds: Tensor, query_index: Tensor, gallery_index: Tensor, ranks: Tensor, count: int
) -> list[Mistake]:
    """The `count` mistakes with the worst ranks, worst first; equal ranks keep the order of the queries.

    Args:
        ranks: (Q,) result of `retrieval_ranks` for the other arguments.
    """
    mistakes = []
    for query in torch.argsort(ranks, descending=True, stable=True)[:count].tolist():
        if ranks[query] == 1:
            break
        answers = gallery_index[query_index == query]
        scores = gallery_embeds @ query_embeds[query]
        right = answers[scores[answers].argmax()]
        scores[answers] = -torch.inf  # in a tie the wrong item ranks first, as in `ranks`
        mistakes.append(Mistake(query, int(scores.argmax()), int(right), rank=int(ranks[query])))
    return mistakes
