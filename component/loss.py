"""Contrastive losses: pure functions of embeddings and scale.

Shapes: B pairs of this process, N pairs of all processes, D projection width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOGITS_PER_BLOCK = 2**24  # 64 MB of fp32: all of them for 4096 pairs


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    gather: Callable[[Tensor], tuple[Tensor, int]] | None = None,
) -> Tensor:
    """Symmetric InfoNCE over matched pairs (CLIP, arXiv:2103.00020, figure 3), computed in fp32.

    A model that knows nothing scores ln(N). Memory grows with N, not with N²: logits beyond 64 MB are taken block by
    block.

    Args:
        image_embeds: (B, D), L2-normalised; row i belongs to row i of `text_embeds`.
        text_embeds: (B, D), L2-normalised.
        logit_scale: scalar inverse temperature, already exponentiated.
        gather: for the negatives of other processes: (B, 2 D) of this one → (N, 2 D) of all, and where its own
            begin. B may differ between processes, and may be 0.

    Returns:
        Scalar in nats: the mean of image-to-text and text-to-image cross-entropy. With `gather` this process's share
        of that mean over all N pairs: the shares of all processes add up to it.

    Raises:
        ValueError: the numbers of images and texts differ.
    """
    if len(image_embeds) != len(text_embeds):
        raise ValueError(
            f"The contrastive loss needs one text per image: got {len(text_embeds)} texts and "
            f"{len(image_embeds)} images. Pass equal numbers, or leave out return_loss."
        )
    # Under autocast the product would be rounded to half precision, and at a scale of 100 that error is visible.
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts, scale = image_embeds.float(), text_embeds.float(), logit_scale.float()
        all_images, all_texts, start = images, texts, 0
        if gather is not None:
            both, start = gather(torch.cat([images, texts], dim=1))
            all_images, all_texts = both.chunk(2, dim=1)
        return (_info_nce(images, all_texts, scale, start) + _info_nce(texts, all_images, scale, start)) / 2


def _info_nce(queries: Tensor, keys: Tensor, scale: Tensor, start: int) -> Tensor:
    """(B, D) queries, (N, D) keys → sum of B cross-entropies of finding key start + i with query i, divided by N."""
    if len(queries) * len(keys) > _LOGITS_PER_BLOCK:
        return _InfoNCEInBlocks.apply(queries, keys, scale, start)
    logits = scale * queries @ keys.T
    own = logits[:, start : start + len(queries)].diagonal()
    return (logits.logsumexp(dim=1) - own).sum() / max(len(keys), 1)


class _InfoNCEInBlocks(torch.autograd.Function):
    """`_info_nce` for many pairs.

    A block of queries sees all keys. So its softmax is complete, and its gradients can be taken while its logits are
    there: no second pass, and no logits are kept.
    """

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, scale: Tensor, start: int) -> Tensor:
        loss, by_scale = torch.zeros_like(scale), torch.zeros_like(scale)
        by_queries, by_keys = torch.empty_like(queries), torch.zeros_like(keys)
        rows = max(1, _LOGITS_PER_BLOCK // len(keys))
        for first in range(0, len(queries), rows):
            block = queries[first : first + rows]
            answers = torch.arange(start + first, start + first + len(block), device=keys.device)[:, None]
            logits = (block @ keys.T).mul_(scale)
            log_sums = logits.logsumexp(dim=1, keepdim=True)
            loss += (log_sums - logits.gather(1, answers)).sum()
            # The gradient by the logits, softmax minus one at the answer, is written over them.
            by_logits = logits.sub_(log_sums).exp_()
            by_logits.scatter_add_(1, answers, torch.full_like(log_sums, -1))
            by_block = by_queries[first : first + rows]
            torch.mm(by_logits, keys, out=by_block)
            by_keys.addmm_(by_logits.T, block)
            by_scale += (by_block * block).sum()
        count = len(keys)
        ctx.save_for_backward(by_queries.mul_(scale / count), by_keys.mul_(scale / count), by_scale / count)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return *(gradient * by_input for by_input in ctx.saved_tensors), None
