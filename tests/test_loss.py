import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from component.loss import clip_loss


def embeds(seed: int, count: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_equals_the_loss_of_transformers():
    image, text, scale = embeds(0), embeds(1), torch.tensor(14.3)
    theirs = image_text_contrastive_loss(scale * text @ image.T)
    torch.testing.assert_close(clip_loss(image, text, scale), theirs)


def test_a_model_that_knows_nothing_scores_ln_n():
    same = embeds(0)[:1].expand(6, -1)
    assert clip_loss(same, same, torch.tensor(20.0)).item() == pytest.approx(math.log(6))


def test_autocast_does_not_reach_the_loss():
    image, text, scale = embeds(0, 64), embeds(1, 64), torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = clip_loss(image, text, scale)
    assert inside.dtype == torch.float32 and torch.equal(inside, clip_loss(image, text, scale))


def test_unequal_numbers_are_named():
    with pytest.raises(ValueError, match="5 texts and 6 images"):
        clip_loss(embeds(0), embeds(1)[:5], torch.tensor(1.0))
