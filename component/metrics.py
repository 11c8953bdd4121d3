"""Retrieval and classification metrics: pure functions of embeddings and ranks.

Shapes: P pairs, Q queries, G gallery items, D projection width.
"""

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
_SCORES_PER_CHUNK = 2**25  # 128 MB of fp32


def retrieval_ranks(
    query_embeds: Tensor, gallery_embeds: Tensor, query_index: Tensor, gallery_index: Tensor
) -> Tensor:
    """Rank of each query's best right answer in the whole gallery; 1 is the top.

    A query may have several right answers: the best one counts, and the others do not push it down. Ties are resolved
    against the model: a wrong item with the same score ranks before the right one. Queries are processed in chunks,
    so no (Q, G) matrix is held.

    Args:
        query_embeds: (Q, D), L2-normalised.
        gallery_embeds: (G, D), L2-normalised.
        query_index, gallery_index: (P,) int64; gallery item `gallery_index[p]` is a right answer to query
            `query_index[p]`. Every query needs at least one.

    Returns:
        (Q,) int64.

    >>> queries, gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
    >>> retrieval_ranks(queries, gallery, torch.tensor([0, 1]), torch.tensor([0, 0]))
    tensor([1, 2])
    """
    order = torch.argsort(query_index, stable=True)
    query_index, gallery_index = query_index[order].contiguous(), gallery_index[order]
    ranks = []
    chunk = max(1, _SCORES_PER_CHUNK // len(gallery_embeds))
    for start in range(0, len(query_embeds), chunk):
        scores = query_embeds[start : start + chunk] @ gallery_embeds.T
        bounds = torch.searchsorted(query_index, torch.tensor([start, start + len(scores)], device=query_index.device))
        query, answer = query_index[bounds[0] : bounds[1]] - start, gallery_index[bounds[0] : bounds[1]]
        right = scores[query, answer]
        best = torch.full_like(scores[:, 0], -torch.inf).scatter_reduce(0, query, right, "amax")
        scores[query, answer] = -torch.inf
        # Not `scores >= best`: it is False for NaN, and a model of NaNs would have rank 1 everywhere.
        ranks.append(1 + (~(scores < best[:, None])).sum(dim=1))
    return torch.cat(ranks)


def retrieval_metrics(
    image_embeds: Tensor, text_embeds: Tensor, image_ids: np.ndarray, text_ids: np.ndarray
) -> dict[str, float]:
    """Recall@1/5/10 and median rank in both directions, and the mean recall.

    recall@k is the share of queries with at least one right answer among the top k of the whole gallery. A caption or
    image that occurs in several pairs (five captions per image, one keyword for many images) is one query and one
    gallery item, and each of its pairs is a right answer.

    Args:
        image_embeds: (P, D), L2-normalised; row i belongs to row i of `text_embeds`.
        text_embeds: (P, D), L2-normalised.
        image_ids: (P,); equal ids are the same image.
        text_ids: (P,); equal ids are the same caption.

    Returns:
        text_to_image_recall@1 … image_to_text_recall@10 and mean_recall, each from 0 to 1;
        text_to_image_median_rank and image_to_text_median_rank, from 1.

    >>> embeds, ids = torch.eye(2), np.arange(2)
    >>> retrieval_metrics(embeds, embeds, ids, ids)["mean_recall"]
    1.0
    >>> retrieval_metrics(embeds, embeds.flip(0), ids, ids)["text_to_image_recall@1"]
    0.0
    """
    _, first_image, image_index = np.unique(image_ids, return_index=True, return_inverse=True)
    _, first_text, text_index = np.unique(text_ids, return_index=True, return_inverse=True)
    images, texts = image_embeds[first_image].float(), text_embeds[first_text].float()
    image_index = torch.from_numpy(image_index.reshape(-1)).to(images.device)
    text_index = torch.from_numpy(text_index.reshape(-1)).to(images.device)
    return summarise_ranks(
        {
            "text_to_image": retrieval_ranks(texts, images, text_index, image_index),
            "image_to_text": retrieval_ranks(images, texts, image_index, text_index),
        }
    )


def summarise_ranks(ranks: dict[str, Tensor]) -> dict[str, float]:
    """Recall@1/5/10 of each direction, their mean, and the median ranks.

    Args:
        ranks: direction → (Q,) ranks from 1, see `retrieval_ranks`.

    >>> metrics = summarise_ranks({"text_to_image": torch.tensor([1, 2, 6])})
    >>> round(metrics["text_to_image_recall@5"], 3), metrics["text_to_image_median_rank"]
    (0.667, 2.0)
    """
    recalls = {
        f"{direction}_recall@{k}": (rank <= k).double().mean().item()
        for direction, rank in ranks.items()
        for k in RECALL_AT
    }
    medians = {f"{direction}_median_rank": float(np.median(rank.cpu())) for direction, rank in ranks.items()}
    return {**recalls, "mean_recall": sum(recalls.values()) / len(recalls), **medians}


def classification_metrics(ranks: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of zero-shot classification, each from 0 to 1.

    Args:
        ranks: (Q,) rank of each image's true class among all classes, from 1.
        labels: (Q,) the true class of each image; classes without an image do not count.

    Returns:
        top1 and top5 over all images, and mean_per_class: top1 within each class, averaged over the classes.

    >>> classification_metrics(torch.tensor([1, 2, 6, 1]), torch.tensor([0, 0, 1, 1]))
    {'top1': 0.5, 'top5': 0.75, 'mean_per_class': 0.5}
    """
    return {
        "top1": (ranks == 1).double().mean().item(),
        "top5": (ranks <= 5).double().mean().item(),
        "mean_per_class": class_accuracies(ranks, labels)[1].mean().item(),
    }


def class_accuracies(ranks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that have an image, rising, and the top-1 accuracy within each, from 0 to 1.

    Args:
        ranks, labels: as in `classification_metrics`.

    >>> class_accuracies(torch.tensor([1, 2, 1]), torch.tensor([0, 0, 3]))
    (tensor([0, 3]), tensor([0.5000, 1.0000], dtype=torch.float64))
    """
    classes, label = labels.unique(return_inverse=True)
    right = torch.zeros(len(classes), dtype=torch.double, device=ranks.device)
    return classes, right.index_add(0, label, (ranks == 1).double()) / label.bincount()


def mean_cosine(embeds: Tensor) -> float:
    """Mean cosine of all pairs of different rows of (n, D) L2-normalised embeddings, n ≥ 2; 1 if all rows are equal.

    >>> mean_cosine(torch.eye(3))
    0.0
    """
    n, total = len(embeds), embeds.float().sum(dim=0)
    return (total.square().sum().item() - n) / (n * (n - 1))
