"""How well a model finds images by text and texts by image.

Shapes: T texts, I images, P right pairs, D projection width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import CLIPProcessor

from component.embedded import Embedded
from component.embedding import embed_images, embed_texts
from component.evaluation.phrased_retrieval import PhrasedResult, rank_phrased
from component.evaluation.phrasings import Phrasing
from component.evaluation.ranking import Mistake, Side, rank
from component.evaluation.retrieval_data import RetrievalData
from component.metrics import summarise_ranks
from component.model import BertCLIPModel


@dataclass(frozen=True)
class RetrievalResult:
    """Result of `evaluate_retrieval`.

    Attributes:
        metrics: those of `summarise_ranks`, and the numbers of texts, images, pairs and bad_images.
        ranks: direction → rank of each query's best right answer, from 1.
        mistakes: direction → the queries with the worst ranks, worst first.
        bad_images: index of an image → reason. Texts of which no image is left are left out too.
        phrased: of each phrasing that was asked for.
    """

    metrics: dict[str, float]
    ranks: dict[str, Tensor]
    mistakes: dict[str, list[Mistake]]
    bad_images: dict[int, str]
    phrased: Sequence[PhrasedResult] = ()


def evaluate_retrieval(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    data: RetrievalData,
    batch_size: int = 64,
    num_mistakes: int = 8,
    on_batch: Callable[[int], None] = lambda done: None,
    phrasings: Sequence[Phrasing] = (),
) -> RetrievalResult:
    """Embed every text and image once, and rank them against each other in both directions.

    Args:
        model, processor, batch_size: see `embed_images`.
        num_mistakes: mistakes to report per direction.
        on_batch: called with the number of items embedded.
        phrasings: ask for the images in these ways too, see `read_phrasings`.

    Raises:
        ValueError: no image with a text can be read.
    """

    def embed(texts: Sequence[str]) -> Embedded:
        return embed_texts(model, processor, texts, batch_size, on_batch)

    images, texts = embed_images(model, processor, data.images, batch_size, on_batch=on_batch), embed(data.texts)
    result = rank_pairs(data, images, texts, num_mistakes)
    return replace(result, phrased=[rank_phrased(data, images, texts, phrasing, embed) for phrasing in phrasings])


def rank_pairs(data: RetrievalData, images: Embedded, texts: Embedded, num_mistakes: int = 8) -> RetrievalResult:
    """Rank the embedded texts and images of `data` against each other. Raises as `evaluate_retrieval`."""
    pairs = torch.tensor(data.pairs)
    good = ~torch.isin(pairs[:, 1], torch.tensor(list(images.bad_images), dtype=torch.long))
    if not good.any():
        row, reason = next(iter(images.bad_images.items()))
        raise ValueError(
            f"No image with a text can be read (the first: {data.image_names[row]}: {reason}). If they are elsewhere, "
            "set image_path: the file names are relative to it."
        )
    # From here on, texts and images are numbered without those that were left out.
    text_rows, text_index = pairs[good, 0].unique(return_inverse=True)
    image_rows = torch.tensor(images.rows)
    image_index = torch.searchsorted(image_rows, pairs[good, 1])
    text_side = Side(text_rows, texts.embeds[text_rows], text_index)
    image_side = Side(image_rows, images.embeds, image_index)
    ranks, mistakes = {}, {}
    ranks["text_to_image"], mistakes["text_to_image"] = rank(text_side, image_side, num_mistakes)
    ranks["image_to_text"], mistakes["image_to_text"] = rank(image_side, text_side, num_mistakes)
    counts = {
        "texts": len(text_rows),
        "images": len(image_rows),
        "pairs": int(good.sum()),
        "bad_images": len(images.bad_images),
    }
    return RetrievalResult({**summarise_ranks(ranks), **counts}, ranks, mistakes, images.bad_images)
