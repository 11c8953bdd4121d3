"""Contrastive losses: pure functions of embeddings and scale.

Shapes: N pairs, D projection width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over matched pairs (CLIP, arXiv:2103.00020, figure 3), computed in fp32.

    A model that knows nothing scores ln(N).

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
        logits_per_image = logit_scale.float() * image_embeds.float() @ text_embeds.float().T
        target = torch.arange(len(image_embeds), device=image_embeds.device)
        return (F.cross_entropy(logits_per_image, target) + F.cross_entropy(logits_per_image.T, target)) / 2
