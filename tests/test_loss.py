import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from component import loss
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


def loss_and_gradients(image, text, scale, outer: float = 1.0) -> list[torch.Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in (image, text, scale)]
    value = clip_loss(*inputs)
    (outer * value).backward()
    return [value.detach(), *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("block", [1, 37, 38 * 5, 37 * 12, 37 * 37 - 1])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 14.3), (torch.float32, 100.0), (torch.bfloat16, 100.0)])
def test_in_blocks_the_loss_and_its_gradients_are_the_same(monkeypatch, block, dtype, scale):
    image = embeds(0, 37)
    text = F.normalize(image + embeds(1, 37), dim=-1)
    inputs = (image.to(dtype), text.to(dtype), torch.tensor(scale))
    plain = loss_and_gradients(*inputs, outer=0.5)
    monkeypatch.setattr(loss, "_LOGITS_PER_BLOCK", block)
    for ours, wanted in zip(loss_and_gradients(*inputs, outer=0.5), plain, strict=True):
        assert ours.dtype == wanted.dtype
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def test_autocast_does_not_reach_the_blocks(monkeypatch):
    monkeypatch.setattr(loss, "_LOGITS_PER_BLOCK", 100)
    inputs = embeds(0, 64), embeds(1, 64), torch.tensor(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss_and_gradients(*inputs)
    assert all(torch.equal(one, other) for one, other in zip(inside, loss_and_gradients(*inputs), strict=True))


def test_memory_does_not_grow_with_the_square_of_the_pairs():
    """5000 × 5000 logits are 100 MB, and the plain loss holds several such."""
    script = """
import resource, torch
from component import loss
loss._LOGITS_PER_BLOCK = 2**20
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def step(pairs):
    image, text = (torch.nn.functional.normalize(torch.randn(pairs, 16)).requires_grad_() for _ in range(2))
    loss.clip_loss(image, text, torch.tensor(20.0, requires_grad=True)).backward()
step(2000)
before = peak()
step(5000)
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(result.stdout) < 30  # MB
