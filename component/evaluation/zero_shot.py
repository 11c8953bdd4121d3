"""Zero-shot classification: each class is the mean of its name in many Chinese sentences (component.prompts).

Shapes: C classes, I images, D projection width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import CLIPProcessor

from component.embedding import embed_images
from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.mistakes import Mistake, hardest_mistakes
from component.metrics import classification_metrics, retrieval_ranks
from component.model import BertCLIPModel
from component.prompts import embed_classes


@dataclass(frozen=True)
class ZeroShotResult:
    """What a classification found; `mistakes` has images as queries and classes as gallery."""

    metrics: dict[str, float]
    mistakes: list[Mistake]
    bad_images: dict[int, str]


def evaluate_zero_shot(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    data: ClassifiedImages,
    batch_size: int = 64,
    num_mistakes: int = 8,
    on_batch: Callable[[int], None] = lambda done: None,
) -> ZeroShotResult:
    """Give each picture the class whose embedding is nearest.

    Args:
        on_batch: called with the number of items that were embedded: pictures, and len(PROMPTS) texts per class.

    Raises:
        ValueError: not one picture can be read.
    """
    images = embed_images(model, processor, data.images, batch_size, on_batch=on_batch)
    if not len(images):
        raise ValueError(f"No picture can be read (the first: {data.images[0]}: {images.bad_images[0]}).")
    class_embeds = embed_classes(model, processor, data.class_names, batch_size, on_batch)
    labels, query_index = torch.tensor(data.labels)[images.rows], torch.arange(len(images))
    ranks = retrieval_ranks(images.embeds, class_embeds, query_index, labels)
    counts = {"images": len(images), "classes": len(data.class_names), "bad_images": len(images.bad_images)}
    mistakes = hardest_mistakes(images.embeds, class_embeds, query_index, labels, ranks, num_mistakes)
    image_rows, classes = torch.tensor(images.rows), torch.arange(len(data.class_names))
    return ZeroShotResult(
        {**classification_metrics(ranks, labels), **counts},
        [mistake.renumbered(image_rows, classes) for mistake in mistakes],
        images.bad_images,
    )
