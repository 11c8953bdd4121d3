"""Zero-shot classification: each class is the mean of its name in many Chinese sentences.

The idea of the prompt ensemble is CLIP's (arXiv:2103.00020, section 3.1.4); the sentences follow the ones that
Chinese-CLIP (arXiv:2211.01335) translated from it. Shapes: C classes, I images, D projection width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_images, embed_texts
from component.evaluation.image_folder import ClassifiedImages
from component.evaluation.mistakes import Mistake, hardest_mistakes
from component.metrics import classification_metrics, retrieval_ranks
from component.model import BertCLIPModel

PROMPTS = (
    "{}",
    "{}的照片",
    "{}的图片",
    "一张{}的照片",
    "一张{}的图片",
    "一张干净的{}的照片",
    "一张明亮的{}的照片",
    "一张昏暗的{}的照片",
    "一张模糊的{}的照片",
    "一张低分辨率的{}的照片",
    "一张裁剪过的{}的照片",
    "一张{}的特写",
    "一张{}的黑白照片",
    "一张大大的{}的照片",
    "一张小小的{}的照片",
    "一张好看的{}的照片",
    "一张奇怪的{}的照片",
    "一张有很多{}的照片",
    "一幅{}的画",
    "一张{}的涂鸦",
    "一张{}的素描",
    "卡通的{}",
    "塑料的{}",
    "毛绒的{}",
    "电子游戏里的{}",
    "{}的雕塑",
    "{}的渲染图",
    "场景里有{}",
    "我的{}",
    "这是{}",
)


@dataclass(frozen=True)
class ZeroShotResult:
    """What a classification found; `mistakes` has images as queries and classes as gallery."""

    metrics: dict[str, float]
    mistakes: list[Mistake]
    bad_images: dict[int, str]


def embed_classes(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    class_names: Sequence[str],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(C, D), L2-normalised: the mean of each class name in all of `PROMPTS`."""
    texts = [prompt.format(name) for name in class_names for prompt in PROMPTS]
    embeds = embed_texts(model, processor, texts, batch_size, on_batch).embeds
    return F.normalize(embeds.view(len(class_names), len(PROMPTS), -1).mean(dim=1), dim=-1)


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
