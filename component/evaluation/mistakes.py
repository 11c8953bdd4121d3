"""Which queries went wrong most, and what was taken for the right answer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistake:
    """A query whose right answer did not come first; the fields are indices into queries and gallery.

    Attributes:
        first: what was ranked first.
        right: the best placed right answer.
        rank: its rank, from 2.
    """

    query: int
    first: int
    right: int
    rank: int

    def renumbered(self, queries: Tensor, gallery: Tensor) -> "Mistake":
        """The same mistake, with index i called queries[i] and gallery[i]."""
        return Mistake(int(queries[self.query]), int(gallery[self.first]), int(gallery[self.right]), rank=self.rank)


def hardest_mistakes(
    query_embeds: Tensor, gallery_embeds: Tensor, query_index: Tensor, gallery_index: Tensor, ranks: Tensor, count: int
) -> list[Mistake]:
    """The `count` mistakes with the worst ranks, the worst first; equal ones in the order of the queries.

    Args:
        ranks: (Q,) as `retrieval_ranks` gave them for the other arguments.
    """
    mistakes = []
    for query in torch.argsort(ranks, descending=True, stable=True)[:count].tolist():
        if ranks[query] == 1:
            break
        answers = gallery_index[query_index == query]
        scores = gallery_embeds @ query_embeds[query]
        right = answers[scores[answers].argmax()]
        scores[answers] = -torch.inf  # in a tie the wrong one stands first, as in the ranks
        mistakes.append(Mistake(query, int(scores.argmax()), int(right), rank=int(ranks[query])))
    return mistakes
