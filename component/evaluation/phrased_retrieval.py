"""How well a model finds images when the same texts are asked in other words.

Shapes: Q texts that a phrasing changes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from component.embedded import Embedded
from component.evaluation.phrasings import Phrasing
from component.evaluation.retrieval_data import RetrievalData
from component.metrics import RECALL_AT, retrieval_ranks


@dataclass(frozen=True)
class PhrasedResult:
    """Text-to-image retrieval in one phrasing, over the texts that it changes.

    Attributes:
        example: one of these texts as it is asked; "" if there are none.
        ranks: (Q,) rank of each one's best right image, from 1.
        plain_ranks: (Q,) the same, asked as it is in the data.
    """

    phrasing: Phrasing
    example: str
    ranks: Tensor
    plain_ranks: Tensor

    @property
    def metrics(self) -> dict[str, float]:
        """texts (Q), recall@1/5/10 and plain_recall@1/5/10; only texts if there are none."""
        return _summarise(self.ranks, self.plain_ranks)


def rank_phrased(
    data: RetrievalData,
    images: Embedded,
    texts: Embedded,
    phrasing: Phrasing,
    embed: Callable[[Sequence[str]], Embedded],
) -> PhrasedResult:
    """Ask for the images in one phrasing. Texts of which no image is left are left out.

    Args:
        images, texts: of the data.
        embed: texts → their embeddings.
    """
    image_numbers = {row: number for number, row in enumerate(images.rows)}
    pairs = [(text, image_numbers[image]) for text, image in data.pairs if image in image_numbers]
    asked = {text: phrasing.change(data.texts[text]) for text, _ in pairs}
    asked = {text: changed for text, changed in asked.items() if changed != data.texts[text]}
    if not asked:
        return PhrasedResult(phrasing, "", *torch.empty(2, 0, dtype=torch.long))
    numbers = {text: number for number, text in enumerate(asked)}
    index = torch.tensor([(numbers[text], image) for text, image in pairs if text in numbers]).T
    changed = list(asked.values())
    sides = embed(changed).embeds, texts.embeds[list(asked)]
    return PhrasedResult(phrasing, changed[0], *(retrieval_ranks(embeds, images.embeds, *index) for embeds in sides))


def mean_metrics(results: Iterable[PhrasedResult]) -> dict[str, dict[str, float]]:
    """Group of phrasings → metrics over all questions in them; a phrasing that changes few texts weighs little."""
    groups: dict[str, list[PhrasedResult]] = {}
    for result in results:
        groups.setdefault(result.phrasing.group, []).append(result)
    return {
        group: _summarise(*(torch.cat([getattr(one, key) for one in members]) for key in ("ranks", "plain_ranks")))
        for group, members in groups.items()
    }


def _summarise(ranks: Tensor, plain_ranks: Tensor) -> dict[str, float]:
    sides = {"recall": ranks, "plain_recall": plain_ranks} if len(ranks) else {}
    recalls = {f"{name}@{k}": (rank <= k).double().mean().item() for name, rank in sides.items() for k in RECALL_AT}
    return {"texts": len(ranks), **recalls}
