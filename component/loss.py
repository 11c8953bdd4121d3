"""Contrastive losses: pure functions of embeddings and scale, computed in fp32.

Shapes: B pairs of this process, N pairs of all processes, D projection width.

Common arguments:
    image_embeds, text_embeds: (B, D), L2-normalised; row i of one belongs to row i of the other.
    logit_scale: scalar inverse temperature, already exponentiated.
    ids: (B, 2) int64, ids of each pair's text and image. Another pair with the same text or the same image is not a
        negative: it is masked (false negative elimination, arXiv:2011.11765).
    gather: collects the negatives of other processes: (B, …) rows of this process → (N, …) rows of all, and the index
        at which its own rows begin. B may differ between processes and may be 0. The loss is then this process's share
        of the loss over all N pairs: the shares of all processes add up to it.

Memory grows with N, not with N²: the logits are computed in blocks of 64 MB.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOGITS_PER_BLOCK = 2**24  # 64 MB of fp32: one block up to 4096 pairs

Gather = Callable[[Tensor], tuple[Tensor, int]]


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    ids: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """`siglip_loss` if the model has a logit_bias, else `clip_loss`; see there for arguments, result and errors.

    >>> embeds, scale = torch.eye(4), torch.tensor(100.0)
    >>> contrastive_loss(embeds, embeds, scale) == clip_loss(embeds, embeds, scale)
    tensor(True)
    """
    if logit_bias is None:
        return clip_loss(image_embeds, text_embeds, logit_scale, ids, gather)
    return siglip_loss(image_embeds, text_embeds, logit_scale, logit_bias, ids, gather)


def matryoshka_loss(dims: Sequence[int], image_embeds: Tensor, text_embeds: Tensor, *args, **kwargs) -> Tensor:
    """Mean of `contrastive_loss` over whole embeddings and over their first dimensions (arXiv:2205.13147, equation 1).

    Args:
        dims: how many first dimensions to keep, normalised again, in each further loss; none: `contrastive_loss`.
        args, kwargs: see `contrastive_loss`.
    """
    losses = [contrastive_loss(image_embeds, text_embeds, *args, **kwargs)]
    for dim in dims:
        short = (F.normalize(embeds[:, :dim].float(), dim=-1) for embeds in (image_embeds, text_embeds))
        losses.append(contrastive_loss(*short, *args, **kwargs))
    return torch.stack(losses).mean()


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    ids: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Symmetric InfoNCE over matched pairs (CLIP, arXiv:2103.00020, figure 3).

    Returns:
        Scalar in nats: the mean of image-to-text and text-to-image cross-entropy; ln(N) for a model that cannot tell
        pairs apart.

    Raises:
        ValueError: the numbers of images and texts differ.

    >>> same = torch.ones(4, 1)
    >>> clip_loss(same, same, torch.tensor(100.0)), torch.tensor(4.0).log()
    (tensor(1.3863), tensor(1.3863))
    """
    images, texts, all_images, all_texts, *rest = _gathered(image_embeds, text_embeds, ids, gather)
    scale = logit_scale.float()
    return (
        _InBlocks.apply(_softmax, images, all_texts, scale, None, *rest)
        + _InBlocks.apply(_softmax, texts, all_images, scale, None, *rest)
    ) / 2


def siglip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    ids: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv:2303.15343, algorithm 1).

    Args:
        logit_bias: scalar, added to every logit; initialised to -10, because N - 1 of N logits are negatives.

    Returns:
        Scalar in nats: the sum of the N² binary cross-entropies, divided by N.

    Raises:
        ValueError: the numbers of images and texts differ.

    >>> embeds = torch.eye(2)  # logits are 10 - 5 for a matched pair and 0 - 5 for others: 2 log(1 + exp(-5)) per pair
    >>> siglip_loss(embeds, embeds, torch.tensor(10.0), torch.tensor(-5.0))
    tensor(0.0134)
    """
    images, _, _, all_texts, *rest = _gathered(image_embeds, text_embeds, ids, gather)
    return _InBlocks.apply(_sigmoid, images, all_texts, logit_scale.float(), logit_bias.float(), *rest)


def feature_loss(embeds: Tensor, teacher_embeds: Tensor, total: int) -> Tensor:
    """Mean squared distance of embeddings to those of a teacher: the feature distillation (FD) of CLIP-KD
    (arXiv:2307.12732), which is the strongest of its terms alone. The others are not taken.

    CLIP-KD weights the mean over the 512 components of an embedding by 2000. This is their sum, which does not depend
    on the width, and 4 times it is the same (2000 / 512 = 3.9).

    Args:
        embeds: (B, D), L2-normalised.
        teacher_embeds: (B, D), L2-normalised, of the same texts or images.
        total: N; as in the other losses, the shares of all processes add up.

    Returns:
        Scalar: the mean of 2 - 2 · cosine, from 0 to 4.

    >>> feature_loss(torch.eye(2), torch.eye(2), 2), feature_loss(torch.eye(2), -torch.eye(2), 2)
    (tensor(0.), tensor(4.))
    """
    return (embeds.float() - teacher_embeds.float()).square().sum() / max(total, 1)


def _gathered(images: Tensor, texts: Tensor, ids: Tensor | None, gather: Gather | None) -> tuple:
    """Embeddings in fp32 and ids: (images, texts, all_images, all_texts, ids, all_ids, start).

    `start` is the row of all processes at which the rows of this process begin.
    """
    if len(images) != len(texts):
        raise ValueError(
            f"The contrastive loss needs one text per image: got {len(texts)} texts and {len(images)} images. "
            "Pass equal numbers, or do not set return_loss."
        )
    images, texts = images.float(), texts.float()
    if gather is None:
        return images, texts, images, texts, ids, ids, 0
    both, start = gather(torch.cat([images, texts], dim=1))
    all_ids = None if ids is None else gather(ids)[0]
    return images, texts, *both.chunk(2, dim=1), ids, all_ids, start


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the rows of log Σ exp(logit), and its gradient with respect to the logits, computed in place."""
    log_sums = logits.logsumexp(dim=1, keepdim=True)
    return log_sums.sum(), logits.sub_(log_sums).exp_()


def _sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over all logits of log(1 + exp(logit)), and its gradient with respect to the logits, computed in place."""
    return F.softplus(logits).sum(), logits.sigmoid_()


class _InBlocks(torch.autograd.Function):
    """(`normaliser` of the logits of (B, D) queries and (N, D) keys - sum of the logits of matched pairs) / N.

    Each block of queries sees all keys, so its gradients are computed while its logits are in memory: there is no
    second pass, and no logits are kept.
    """

    @staticmethod
    def forward(ctx, normaliser, queries, keys, scale, bias, ids, all_ids, start: int) -> Tensor:
        loss, by_scale, by_bias = (torch.zeros_like(scale) for _ in range(3))
        by_queries, by_keys = torch.empty_like(queries), torch.zeros_like(keys)
        count = max(len(keys), 1)
        rows = max(1, _LOGITS_PER_BLOCK // count)
        # Autocast would round the products to half precision, which a scale of 100 makes visible in the loss.
        with torch.autocast(queries.device.type, enabled=False):
            for first in range(0, len(queries), rows):
                block = queries[first : first + rows]
                logits = (block @ keys.T).mul_(scale)
                if bias is not None:
                    logits += bias
                if ids is not None:
                    text_ids, image_ids = ids[first : first + rows, :, None].unbind(dim=1)
                    repeated = (text_ids == all_ids[:, 0]) | (image_ids == all_ids[:, 1])
                    repeated.diagonal(start + first).fill_(False)
                    logits.masked_fill_(repeated, -torch.inf)
                loss -= logits.diagonal(start + first).sum()
                sum_, by_logits = normaliser(logits)
                loss += sum_
                by_logits.diagonal(start + first).sub_(1)
                by_bias += by_logits.sum()
                by_block = by_queries[first : first + rows]
                torch.mm(by_logits, keys, out=by_block)
                by_keys.addmm_(by_logits.T, block)
                by_scale += (by_block * block).sum()
        gradients = by_queries.mul_(scale), by_keys.mul_(scale), by_scale, None if bias is None else by_bias
        ctx.save_for_backward(*(None if gradient is None else gradient.div_(count) for gradient in gradients))
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        by_inputs = (None if by_input is None else gradient * by_input for by_input in ctx.saved_tensors)
        return None, *by_inputs, None, None, None
