"""Zero-shot classification; a class is the mean embedding of its name in many Chinese sentences, see `prompts`.

Shapes: C classes, I images, D projection width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_images
from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.ranking import Mistake, Side, rank
from component.metrics import classification_metrics
from component.model import BertCLIPModel
from component.prompts import embed_classes


@dataclass(frozen=True)
class ZeroShotResult:
    """Result of `evaluate_zero_shot`.

    Attributes:
        metrics: those of `classification_metrics`, and the numbers of images, classes and bad_images.
        ranks, labels: (I,) rank of each image's true class, from 1, and that class.
        mistakes: the images with the worst ranks, worst first; the gallery is the classes.
        bad_images: index of an image → reason.
    """

    metrics: dict[str, float]
    ranks: Tensor
    labels: Tensor
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
    """Rank the classes for each image by the cosine of their embeddings.

    Args:
        model, processor, batch_size: see `embed_images`.
        num_mistakes: mistakes to report.
        on_batch: called with the number of items embedded: images, and len(PROMPTS) texts per class.

    Raises:
        ValueError: none of the images can be read.
    """
    images = embed_images(model, processor, data.images, batch_size, on_batch=on_batch)
    if not len(images):
        raise ValueError(f"None of the images can be read (the first: {data.images[0]}: {images.bad_images[0]}).")
    class_embeds = embed_classes(model, processor, data.class_names, batch_size, on_batch)
    labels = torch.tensor(data.labels)[images.rows]
    queries = Side(torch.tensor(images.rows), images.embeds, torch.arange(len(images)))
    ranks, mistakes = rank(queries, Side(torch.arange(len(class_embeds)), class_embeds, labels), num_mistakes)
    counts = {"images": len(images), "classes": len(data.class_names), "bad_images": len(images.bad_images)}
    metrics = {**classification_metrics(ranks, labels), **counts}
    return ZeroShotResult(metrics, ranks, labels, mistakes, images.bad_images)
