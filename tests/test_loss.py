"""The losses compared with their textbook forms, which hold all logits and use autograd."""

import functools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from component import loss
from component.loss import clip_loss, contrastive_loss, matryoshka_loss, siglip_loss

BIAS = torch.tensor(-3.0)


def embeds(seed: int, count: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def ids(count: int) -> torch.Tensor:
    """Ids with repetitions: pairs 0 and 2 share a text, pairs 0 and 1 an image, and so on."""
    rows = torch.arange(count)
    return torch.stack([torch.where(rows % 4 == 2, rows - 2, rows), torch.where(rows % 5 == 0, rows + 1, rows)], dim=1)


def repeats(ids: torch.Tensor) -> torch.Tensor:
    """(n, n) bool: another pair with the same text or the same image."""
    same = torch.tensor([[one[0] == other[0] or one[1] == other[1] for other in ids] for one in ids])
    return same & ~torch.eye(len(ids), dtype=torch.bool)


def textbook_clip(image, text, scale, ids=None):
    logits = scale * image.float() @ text.float().T
    if ids is not None:
        logits = logits.masked_fill(repeats(ids), -torch.inf)
    answers = torch.arange(len(logits))
    return (F.cross_entropy(logits, answers) + F.cross_entropy(logits.T, answers)) / 2


def textbook_siglip(image, text, scale, bias, ids=None):
    logits = scale * image.float() @ text.float().T + bias
    weights = torch.ones_like(logits) if ids is None else 1.0 - repeats(ids).float()
    matched = torch.eye(len(logits))
    return F.binary_cross_entropy_with_logits(logits, matched, weights, reduction="sum") / len(logits)


def loss_and_gradients(function, *tensors, ids=None, outer: float = 1.0) -> list[torch.Tensor]:
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*inputs, ids=ids)
    (outer * value).backward()
    return [value.detach(), *(tensor.grad for tensor in inputs)]


def test_clip_equals_the_loss_of_transformers():
    image, text, scale = embeds(0), embeds(1), torch.tensor(14.3)
    theirs = image_text_contrastive_loss(scale * text @ image.T)
    torch.testing.assert_close(clip_loss(image, text, scale), theirs)


def test_equal_embeddings_give_a_loss_of_ln_n():
    same = embeds(0)[:1].expand(6, -1)
    assert clip_loss(same, same, torch.tensor(20.0)).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize("block", [1, 37, 38 * 5, 37 * 12, 37 * 37 - 1, 37 * 37])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 14.3), (torch.float32, 100.0), (torch.bfloat16, 100.0)])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    ("ours", "textbook", "bias"), [(clip_loss, textbook_clip, []), (siglip_loss, textbook_siglip, [BIAS])]
)
def test_loss_and_gradients_equal_the_textbook(monkeypatch, ours, textbook, bias, with_ids, dtype, scale, block):
    monkeypatch.setattr(loss, "_LOGITS_PER_BLOCK", block)
    image = embeds(0, 37)
    text = F.normalize(image + embeds(1, 37), dim=-1)
    inputs = (image.to(dtype), text.to(dtype), torch.tensor(scale), *bias)
    options = dict(ids=ids(37) if with_ids else None, outer=0.5)
    expected = loss_and_gradients(textbook, *inputs, **options)
    for value, wanted in zip(loss_and_gradients(ours, *inputs, **options), expected, strict=True):
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("textbook", "bias"), [(textbook_clip, []), (textbook_siglip, [BIAS])])
def test_a_matryoshka_loss_is_the_mean_over_the_cut_embeddings(textbook, bias):
    def mean(image, text, *others, ids):
        cut = [[F.normalize(one[:, :dim], dim=-1) for one in (image, text)] for dim in (4, 1)]
        return sum(textbook(*pair, *others, ids) for pair in ((image, text), *cut)) / 3

    inputs, options = (embeds(0), embeds(1), torch.tensor(14.3), *bias), dict(ids=ids(6), outer=0.5)
    expected = loss_and_gradients(mean, *inputs, **options)
    found = loss_and_gradients(functools.partial(matryoshka_loss, [4, 1]), *inputs, **options)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    whole = loss_and_gradients(contrastive_loss, *inputs, **options)
    uncut = loss_and_gradients(functools.partial(matryoshka_loss, []), *inputs, **options)
    assert all(torch.equal(one, other) for one, other in zip(whole, uncut, strict=True))


@pytest.mark.parametrize(("function", "bias"), [(clip_loss, []), (siglip_loss, [BIAS])])
def test_repeated_pairs_do_not_push_each_other_apart(function, bias):
    """Two of three pairs share a text: its gradient does not depend on the image of the other pair."""
    image, text, scale = embeds(0, 3), embeds(1, 3), torch.tensor(14.3)
    text[1] = text[0]
    twice = torch.tensor([[7, 0], [7, 1], [8, 2]])
    moved = torch.cat([image[:1], embeds(2, 1), image[2:]])

    def by_first_text(image, ids):
        return loss_and_gradients(function, image, text, scale, *bias, ids=ids)[2][0]

    assert not torch.allclose(by_first_text(image, None), by_first_text(moved, None))
    torch.testing.assert_close(by_first_text(image, twice), by_first_text(moved, twice))


def test_autocast_does_not_change_the_losses():
    inputs = embeds(0, 64), embeds(1, 64), torch.tensor(100.0)
    for function, bias in ((clip_loss, []), (siglip_loss, [BIAS])):
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss_and_gradients(function, *inputs, *bias)
        outside = loss_and_gradients(function, *inputs, *bias)
        assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_unequal_numbers_of_texts_and_images_are_refused():
    with pytest.raises(ValueError, match="5 texts and 6 images"):
        clip_loss(embeds(0), embeds(1)[:5], torch.tensor(1.0))


def test_memory_does_not_grow_with_the_square_of_the_pairs():
    """5000 × 5000 logits take 100 MB, and the textbook losses hold several such matrices."""
    script = """
import resource, torch
from component import loss
loss._LOGITS_PER_BLOCK = 2**20
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def step(pairs):
    image, text = (torch.nn.functional.normalize(torch.randn(pairs, 16)).requires_grad_() for _ in range(2))
    scale, ids = torch.tensor(20.0, requires_grad=True), torch.arange(2 * pairs).view(pairs, 2)
    loss.clip_loss(image, text, scale, ids).backward()
    loss.siglip_loss(image, text, scale, scale, ids).backward()
step(2000)
before = peak()
step(5000)
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(result.stdout) < 30  # MB
