"""Contrastive losses: pure functions of embeddings and scale.

Shapes: N pairs, D projection width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOGITS_PER_BLOCK = 2**24  # 64 MB of fp32: all of them for 4096 pairs


def clip_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over matched pairs (CLIP, arXiv:2103.00020, figure 3), computed in fp32.

    A model that knows nothing scores ln(N). Memory grows with N, not with N²: logits beyond 64 MB are taken block by
    block.

    Args:
        image_embeds: (N, D), L2-normalised; row i belongs to row i of `text_embeds`.
        text_embeds: (N, D), L2-normalised.
        logit_scale: scalar inverse temperature, already exponentiated.

    Returns:
        Scalar in nats: the mean of image-to-text and text-to-image cross-entropy.

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
        if len(images) ** 2 <= _LOGITS_PER_BLOCK:
            logits_per_image = scale * images @ texts.T
            target = torch.arange(len(images), device=images.device)
            return (F.cross_entropy(logits_per_image, target) + F.cross_entropy(logits_per_image.T, target)) / 2
        return (_InfoNCEInBlocks.apply(images, texts, scale) + _InfoNCEInBlocks.apply(texts, images, scale)) / 2


class _InfoNCEInBlocks(torch.autograd.Function):
    """(N, D) queries, (N, D) keys, scale → mean cross-entropy of finding key i with query i among all keys.

    A block of queries sees all keys. So its softmax is complete, and its gradients can be taken while its logits are
    there: no second pass, and no logits are kept.
    """

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        loss, by_scale = torch.zeros_like(scale), torch.zeros_like(scale)
        by_queries, by_keys = torch.empty_like(queries), torch.zeros_like(keys)
        rows = max(1, _LOGITS_PER_BLOCK // len(keys))
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            answers = torch.arange(start, start + len(block), device=keys.device)[:, None]
            logits = (block @ keys.T).mul_(scale)
            log_sums = logits.logsumexp(dim=1, keepdim=True)
            loss += (log_sums - logits.gather(1, answers)).sum()
            # The gradient by the logits, softmax minus one at the answer, is written over them.
            by_logits = logits.sub_(log_sums).exp_()
            by_logits.scatter_add_(1, answers, torch.full_like(log_sums, -1))
            by_block = by_queries[start : start + rows]
            torch.mm(by_logits, keys, out=by_block)
            by_keys.addmm_(by_logits.T, block)
            by_scale += (by_block * block).sum()
        count = len(queries)
        ctx.save_for_backward(by_queries.mul_(scale / count), by_keys.mul_(scale / count), by_scale / count)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return tuple(gradient * by_input for by_input in ctx.saved_tensors)
