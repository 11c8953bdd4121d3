"""Class names → embeddings for zero-shot classification, each the mean of its name in many Chinese sentences.

The prompt ensemble is CLIP's (arXiv:2103.00020, section 3.1.4); the sentences follow those that Chinese-CLIP
(arXiv:2211.01335) translated from it. Shapes: C classes, D projection width.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPProcessor

from component.embedding import embed_texts
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


def embed_classes(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    class_names: Sequence[str],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Embed each class name in all of `PROMPTS` and average.

    Args:
        model, processor, batch_size: see `embed_texts`.
        on_batch: called with the number of texts embedded, len(PROMPTS) per class in all.

    Returns:
        (C, D) fp32 on the CPU, L2-normalised.

    >>> embed_classes(model, processor, ["小狗", "公交车", "花"]).shape[0]
    3
    """
    texts = [prompt.format(name) for name in class_names for prompt in PROMPTS]
    embeds = embed_texts(model, processor, texts, batch_size, on_batch).embeds
    return F.normalize(embeds.view(len(class_names), len(PROMPTS), -1).mean(dim=1), dim=-1)
