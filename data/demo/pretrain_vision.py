"""Train clip-vit-emoji, the demo's pretrained image tower, on images in eight drawing styles, without captions.

    python data/demo/pretrain_vision.py                            # trains on all but fluent, from random weights
    python data/demo/pretrain_vision.py --start data/demo/clip-vit-emoji --out /tmp/tower      # continues from a tower
    python data/demo/pretrain_vision.py --test_style twemoji --minutes 10 --out /tmp/tower     # to choose settings

A ViT trained from scratch learns little from eight thousand images in the minutes that a CPU allows, so it gets a
teacher: classic descriptors (pixels, histograms of oriented gradients, colours) of the image cropped to its content,
projected by linear discriminant analysis onto the 256 directions that separate concepts across styles. From augmented
images the tower learns (a) to predict the teacher's vector of the original image and (b) to classify the concept, with
proxies that start at the teacher's class means. After each tenth of the time it is saved and measured: the recall (%)
from the held-out style to the training images. Writes a CLIPModel folder whose text tower is a stub.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

STYLES = ("noto", "twemoji", "openmoji", "noto-v1", "emojione", "emojione-v1", "fxemoji", "streamline")
SIZE = 64  # px
DIM = 256  # width of the shared space


def load_style(folder: Path, concepts: list[str]) -> tuple[Tensor, Tensor]:
    """A style's images of `concepts` (code points), (n, 3, 64, 64) uint8, and the index of each one's concept (n,)."""
    files = [folder / f"{code}.png" for code in concepts]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files if file.exists()]
    drawn = [index for index, file in enumerate(files) if file.exists()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(drawn)


def to_ink(images: Tensor) -> Tensor:
    """uint8 images → float "ink" in [0, 1]: 0 is the white background, so changes of colour keep it white."""
    return 1 - images.float() / 255


# The teacher


def crop_to_content(ink: Tensor) -> Tensor:
    """Scale each drawing to fill its square, because the margins differ widely between styles."""
    drawn = ink.amax(1) > 0.1
    position = torch.arange(float(SIZE))

    def extent(line: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(line, position, SIZE).amin(1), torch.where(line, position, -1).amax(1) + 1

    left, right = extent(drawn.any(1))
    top, bottom = extent(drawn.any(2))
    matrix = torch.zeros(len(ink), 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.maximum(right - left, bottom - top) / SIZE
    matrix[:, 0, 2] = (left + right) / SIZE - 1
    matrix[:, 1, 2] = (top + bottom) / SIZE - 1
    return F.grid_sample(ink, F.affine_grid(matrix, ink.shape, align_corners=False), align_corners=False)


def oriented_gradients(ink: Tensor, cell: int, bins: int = 8) -> Tensor:
    """Histograms of edge directions over half-overlapping cells of `cell` px (Dalal and Triggs, 2005), flat."""
    grey = F.pad(F.avg_pool2d(ink.mean(1, keepdim=True), 3, 1, 1), (1, 1, 1, 1), mode="replicate")
    dx = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    dy = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    strength = (dx**2 + dy**2) ** 0.25
    angle = torch.atan2(dy, dx) % math.pi / math.pi * bins
    away = (angle - torch.arange(bins).view(1, bins, 1, 1) + bins / 2) % bins - bins / 2
    histogram = F.avg_pool2d((1 - away.abs()).clamp(min=0) * strength, cell, cell // 2)
    return (histogram / (histogram.norm(dim=1, keepdim=True) + 0.3)).flatten(1)


def describe(images: Tensor) -> Tensor:
    """Descriptors of one style; each part is centred on the style's mean, which removes what its images share."""

    def parts(images: Tensor) -> tuple[Tensor, ...]:
        ink = crop_to_content(to_ink(images))
        level = (ink.flatten(2) * 2.99).long()
        colours = F.one_hot(level[:, 0] * 9 + level[:, 1] * 3 + level[:, 2], 27).float().mean(1)[:, 1:].sqrt()
        pixels = F.avg_pool2d(F.avg_pool2d(ink, 5, 1, 2), 4).flatten(1)
        return pixels, oriented_gradients(ink, 8), oriented_gradients(ink, 16), colours

    whole = [torch.cat(part) for part in zip(*map(parts, images.split(64)), strict=True)]
    return torch.cat([F.normalize(part - part.mean(0), dim=1) for part in whole], 1)


def concept_means(vectors: Tensor, concept: Tensor) -> Tensor:
    """Vectors (n, D) and the concept of each (n,) → mean vector of each concept (C, D)."""
    sums = torch.zeros(int(concept.max()) + 1, vectors.shape[1]).index_add_(0, concept, vectors)
    return sums / concept.bincount()[:, None]


def discriminant(descriptors: Tensor, concept: Tensor, shrinkage: float = 3.0) -> Tensor:
    """(n, D) → (n, DIM): whiten the variation between styles, project onto the main directions between concepts."""
    centres = concept_means(descriptors, concept)
    within = descriptors - centres[concept]
    within = within.T @ within / len(within)
    within += shrinkage * within.diagonal().mean() * torch.eye(len(within))
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt()
    _, _, directions = torch.linalg.svd((centres - centres.mean(0)) @ whiten, full_matrices=False)
    return (descriptors - centres.mean(0)) @ whiten @ directions[:DIM].T


# The student


def alter(ink: Tensor) -> Tensor:
    """Augment: move, bend, recolour, outline, make thinner or thicker, cover parts.

    On the held-out style twemoji, ten epochs with 0.8 of this strength found 16.7% of the nearest neighbours; with
    twice this strength, 7.8%.
    """
    n = len(ink)

    def draw(width: float) -> Tensor:
        return torch.randn(n) * width

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1) < share).float()

    angle, size, aspect, shear = draw(0.05), draw(0.1).exp(), draw(0.04).exp(), draw(0.04)
    mirror = torch.where(torch.rand(n) < 0.1, -1.0, 1.0)
    rows = [angle.cos() * size * aspect * mirror, shear - angle.sin() * size, draw(0.04)]
    rows += [angle.sin() * size * mirror, angle.cos() * size / aspect, draw(0.04)]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), ink.shape, align_corners=False)
    bend = F.interpolate(torch.randn(n, 2, 4, 4), size=SIZE, mode="bicubic", align_corners=True)
    grid = grid + 0.03 * torch.rand(n, 1, 1, 1) * bend.permute(0, 2, 3, 1)
    ink = F.grid_sample(ink, grid, align_corners=False)

    thick, thin = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    outline = (thick - thin).amax(1, keepdim=True) * torch.rand(n, 1, 1, 1)
    ink = torch.where(some(0.08) > 0, thick, torch.where(some(0.08) > 0, thin, ink))
    ink = torch.maximum(ink, outline * some(0.15))

    mixed = torch.einsum("nij,njhw->nihw", torch.eye(3) + 0.08 * torch.randn(n, 3, 3), ink)
    order = torch.where(some(0.05).view(n, 1) > 0, torch.rand(n, 3).argsort(1), torch.arange(3))
    mixed = mixed.gather(1, order.view(n, 3, 1, 1).expand_as(mixed))
    grey = mixed.mean(1, keepdim=True)
    mixed = grey + (mixed - grey) * torch.maximum(some(0.5), torch.rand(n, 1, 1, 1))
    mixed = (mixed * draw(0.08).exp().view(n, 1, 1, 1)).clamp(0, 1) ** draw(0.1).exp().view(n, 1, 1, 1)
    mixed = torch.lerp(mixed, F.avg_pool2d(mixed, 3, 1, 1), some(0.2))

    position = (torch.arange(SIZE) + 0.5) / SIZE
    across = (position.view(1, 1, 1, -1) - torch.rand(n, 1, 1, 1)).abs() < 0.08 * torch.rand(n, 1, 1, 1)
    down = (position.view(1, 1, -1, 1) - torch.rand(n, 1, 1, 1)).abs() < 0.08 * torch.rand(n, 1, 1, 1)
    return torch.where(across & down, torch.rand(n, 3, 1, 1) * some(0.5), mixed)


def new_model(layers: int) -> CLIPModel:
    """A CLIPModel at 64 px with 16-px patches. The patch embedding starts as a cosine transform of each patch."""
    text = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    text |= dict(max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    vision = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=3)
    vision |= dict(image_size=SIZE, patch_size=16, hidden_act="gelu")
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM))
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.2)
    for weight in model.vision_model.encoder.parameters():
        if weight.ndim == 2:
            torch.nn.init.xavier_uniform_(weight)

    wave = torch.cos(math.pi * torch.arange(16.0)[:, None] * (torch.arange(16.0) + 0.5) / 16)
    wave /= wave.norm(dim=1, keepdim=True)
    low = sorted(((i, j) for i in range(16) for j in range(16)), key=lambda ij: ij[0] ** 2 + ij[1] ** 2)[:64]
    waves = torch.stack([torch.outer(wave[i], wave[j]) for i, j in low])
    axes = F.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]), dim=1)  # light, red-green, yellow-blue
    model.vision_model.embeddings.patch_embedding.weight.data = (
        0.5 * torch.einsum("ac,wij->awcij", axes, waves).reshape(192, 3, 16, 16).contiguous()
    )
    return model


def embed(model: CLIPModel, ink: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """L2-normalised image embeddings (B, DIM) in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        pooled = model.vision_model((1 - ink - mean) / std).pooler_output
        return F.normalize(model.visual_projection(pooled).float(), dim=-1)


def recalls(similarity: Tensor, target: Tensor) -> list[float]:
    """Recall (%) at 1, 5, 10 of similarity (Q, N); `target` (Q,) are the columns sought."""
    rank = (similarity > similarity.gather(1, target[:, None])).sum(1)
    return [round(100 * (rank < k).float().mean().item(), 1) for k in (1, 5, 10)]


def measure(queries: Tensor, target: Tensor, gallery: Tensor, concept: Tensor) -> str:
    """Recall of a style's images (Q, D) by their nearest neighbours in `gallery` (n, D), and by concept means."""
    index = concept.expand(len(queries), -1)
    nearest = torch.full((len(queries), int(concept.max()) + 1), -1.0)
    nearest.scatter_reduce_(1, index, queries @ gallery.T, "amax")
    means = F.normalize(concept_means(gallery, concept), dim=-1)[target]
    found = recalls(means @ queries.T, torch.arange(len(target)))
    return f"R@1/5/10 by nearest neighbour {recalls(nearest, target)}, of images by concept means {found}"


def save(model: CLIPModel, mean: Tensor, std: Tensor, out: Path) -> None:
    """Write the tower in float16 and its image processor."""
    copy.deepcopy(model).half().save_pretrained(out)
    colours = {"image_mean": mean.flatten().tolist(), "image_std": std.flatten().tolist()}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, **colours).save_pretrained(out)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=here / "images", help="one folder per style")
    parser.add_argument("--out", type=Path, default=here / "clip-vit-emoji", help="folder to write after each tenth")
    parser.add_argument("--start", type=Path, help="tower to continue from (default: a new one)")
    parser.add_argument("--test_style", default="fluent", help="held out of training, used to measure recall")
    parser.add_argument("--minutes", type=float, default=60, help="wall time; determines the learning rate schedule")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=7e-4)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument(
        "--teacher_weight", type=float, default=4.0, help="weight of 1 - cosine; cross-entropy has weight 1"
    )
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    concepts = sorted(file.stem for file in (args.images / STYLES[0]).glob("*.png"))
    styles = [load_style(args.images / style, concepts) for style in STYLES if style != args.test_style]
    images, concept = (torch.cat(part) for part in zip(*styles, strict=True))
    teacher = discriminant(torch.cat([describe(style) for style, _ in styles]), concept)
    proxies = torch.nn.Parameter(F.normalize(concept_means(teacher, concept), dim=-1))
    teacher = F.normalize(teacher, dim=-1)
    mean, std = (getattr(images.float() / 255, name)((0, 2, 3)).view(1, 3, 1, 1) for name in ("mean", "std"))

    model = new_model(args.layers)
    if args.start:
        model = CLIPModel.from_pretrained(args.start, dtype=torch.float32)
        processor = CLIPImageProcessor.from_pretrained(args.start)
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (processor.image_mean, processor.image_std))
        # The teacher was fitted on other styles: rotate its space onto the tower's embeddings of the images.
        with torch.no_grad():
            known = torch.cat([embed(model, to_ink(part), mean, std) for part in images.split(256)])
            u, _, v = torch.linalg.svd(teacher.T @ known)
            teacher, proxies.data = teacher @ u @ v, proxies @ u @ v
    average = copy.deepcopy(model)  # exponential moving average of the weights, which is saved
    trained = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [weight for weight in trained if weight.ndim < 2] + [proxies], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    queries, target = load_style(args.images / args.test_style, concepts)

    def embed_all(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([embed(average, to_ink(part), mean, std) for part in images.split(256)])

    def save_and_measure() -> None:
        save(average, mean, std, args.out)
        done = f"{step / per_epoch:.1f} epochs, {(time.time() - start) / 60:.0f} min, loss {np.mean(losses):.3f}"
        recall = measure(embed_all(queries), target, embed_all(images), concept)
        print(f"{done}; {args.test_style}: {recall}", flush=True)

    per_epoch = len(images) // args.batch_size
    start, step, losses, tenth = time.time(), 0, [], 1
    while (share := (time.time() - start) / 60 / args.minutes) < 1:
        if step % per_epoch == 0:
            order = torch.randperm(len(images))
        batch = order[step % per_epoch * args.batch_size :][: args.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1, share / 0.05) * (0.505 + 0.495 * math.cos(math.pi * share))
        embeds = embed(model, alter(to_ink(images[batch])), mean, std)
        scores = 16 * embeds @ F.normalize(proxies, dim=-1).T
        naming = F.cross_entropy(scores, concept[batch], label_smoothing=0.1)
        loss = naming + args.teacher_weight * (1 - (embeds * teacher[batch]).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(weight, 1 - min(0.998, step / (9 + step)))
        losses.append(loss.item())
        if share > tenth / 10:
            save_and_measure()
            losses, tenth = [], tenth + 1
    save_and_measure()


if __name__ == "__main__":
    main()
