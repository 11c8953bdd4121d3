"""Retrieval metrics: pure functions of embeddings.

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
    """Rank of each query's best right answer in the whole gallery, 1 being the top.

    A query may have several right answers: the best placed one counts, and the others do not push it down. Ties are
    resolved against the model: a wrong item with the same score stands before the right one. Queries are taken in
    chunks, so no (Q, G) matrix is held.

    Args:
        query_embeds: (Q, D), L2-normalised.
        gallery_embeds: (G, D), L2-normalised.
        query_index, gallery_index: (P,) int64; gallery item `gallery_index[p]` is a right answer to query
            `query_index[p]`. Every query needs at least one.

    Returns:
        (Q,) int64.
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
        # Not `scores >= best`: compared with NaN that is False, and a model of NaNs would have every rank 1.
        ranks.append(1 + (~(scores < best[:, None])).sum(dim=1))
    return torch.cat(ranks)


def retrieval_metrics(
    image_embeds: Tensor, text_embeds: Tensor, image_ids: np.ndarray, text_ids: np.ndarray
) -> dict[str, float]:
    """Recall@1/5/10 and median rank in both directions, and their mean recall.

    recall@k is the share of queries with at least one right answer among the top k of the whole gallery. Captions and
    pictures that occur in several pairs (five captions per picture, or one keyword for many pictures) are counted
    once as query and once in the gallery, with every pair as a right answer.

    Args:
        image_embeds: (P, D), L2-normalised, row i belongs to row i of `text_embeds`.
        text_embeds: (P, D), L2-normalised.
        image_ids: (P,) the same id means the same picture.
        text_ids: (P,) the same id means the same caption.

    Returns:
        Shares between 0 and 1: text_to_image_recall@1 …, image_to_text_recall@10, mean_recall; and the two
        median ranks, from 1.
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
    """Recall@1/5/10 of each direction, the mean of them all, and the median ranks.

    Args:
        ranks: direction → (Q,) ranks from 1, as `retrieval_ranks` gives them.
    """
    recalls = {
        f"{direction}_recall@{k}": (rank <= k).double().mean().item()
        for direction, rank in ranks.items()
        for k in RECALL_AT
    }
    medians = {f"{direction}_median_rank": float(np.median(rank.cpu())) for direction, rank in ranks.items()}
    return {**recalls, "mean_recall": sum(recalls.values()) / len(recalls), **medians}


def classification_metrics(ranks: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of zero-shot classification; shares between 0 and 1.

    Args:
        ranks: (Q,) rank of each picture's true class among all classes, from 1.
        labels: (Q,) the true class; classes without a picture do not count.

    Returns:
        top1 and top5 over all pictures, and mean_per_class: top1 within each class, averaged over the classes.
    """
    _, label = labels.unique(return_inverse=True)
    right = (ranks == 1).double()
    per_class = torch.zeros(int(label.max()) + 1, dtype=torch.double, device=right.device)
    per_class = per_class.index_add(0, label, right) / label.bincount()
    return {
        "top1": right.mean().item(),
        "top5": (ranks <= 5).double().mean().item(),
        "mean_per_class": per_class.mean().item(),
    }


def mean_cosine(embeds: Tensor) -> float:
    """How alike different rows of (n, D) L2-normalised embeddings are, n n > 1: 1 where all are one point."""
    n, total = len(embeds), embeds.float().sum(dim=0)
    return (total.square().sum().item() - n) / (n * (n - 1))
