"""Evaluate blends of two checkpoints on the data of the fine-tuning and on data that should not be forgotten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

import torch

from component.blend import Ends
from component.embedded import Embedded
from component.embedding import embed_images, embed_texts, image_batches, normalize
from component.evaluation.retrieval import rank_pairs
from component.evaluation.retrieval_data import RetrievalData
from component.image.transform import ImageTransform
from component.model import BertCLIPModel


@dataclass(frozen=True)
class MeasuredBlend:
    """The metrics of `evaluate_retrieval` at one alpha.

    Attributes:
        own: on the data of the fine-tuning.
        kept: on the data that should not be forgotten; None without such data.
    """

    alpha: float
    own: dict[str, float]
    kept: dict[str, float] | None = None

    @property
    def score(self) -> float:
        """The mean recall, averaged over the data sets."""
        return mean(metrics["mean_recall"] for metrics in (self.own, self.kept) if metrics)


@dataclass(frozen=True)
class MeasuredBlends:
    """Blends in the order of their alphas.

    Attributes:
        bad_images: image name → reason, of the images that were left out.
    """

    blends: list[MeasuredBlend]
    bad_images: dict[str, str]

    @property
    def best(self) -> MeasuredBlend:
        """The blend with the highest score; among equals the one with the lowest alpha, which changed least."""
        return max(self.blends, key=lambda blend: (blend.score, -blend.alpha))


def num_items(ends: Ends, own: RetrievalData, kept: RetrievalData | None, alphas: Sequence[float]) -> int:
    """Number of texts and images that `measure_blends` puts through a tower."""
    passes = 1 if ends.image_tower_is_locked else len(alphas)
    return sum(len(alphas) * len(data.texts) + passes * len(data.images) for data in (own, kept) if data)


def measure_blends(
    ends: Ends,
    own: RetrievalData,
    kept: RetrievalData | None,
    alphas: Sequence[float],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
) -> MeasuredBlends:
    """Evaluate retrieval on each data set with each blend. A locked vision tower encodes each image only once.

    Args:
        alphas: each from 0 to 1.
        on_batch: called with the number of items that went through a tower.

    Raises:
        ValueError: an alpha is not from 0 to 1; or no image of a data set can be read.
    """
    found, bad_images, is_locked = [], {}, ends.image_tower_is_locked
    options = {"processor": ends.processor, "batch_size": batch_size, "on_batch": on_batch}
    for data in filter(None, (own, kept)):
        if is_locked:
            embed = _encode_once(ends, data, batch_size, on_batch)
        else:
            embed = partial(embed_images, images=data.images, **options)
        metrics = []
        for alpha in alphas:
            model = ends.at(alpha)
            images, texts = embed(model), embed_texts(model, texts=data.texts, **options)
            metrics.append(rank_pairs(data, images, texts, num_mistakes=0).metrics)
        bad_images |= {data.image_names[row]: reason for row, reason in images.bad_images.items()}
        found.append(metrics)
    return MeasuredBlends([MeasuredBlend(*one) for one in zip(alphas, *found, strict=True)], bad_images)


@torch.inference_mode()
def _encode_once(
    ends: Ends, data: RetrievalData, batch_size: int, on_batch: Callable[[int], None]
) -> Callable[[BertCLIPModel], Embedded]:
    """Encode the images with the vision tower: a function that embeds them with the projection of a blend."""
    model, outputs, good_rows, bad_images = ends.model, [], [], {}
    transform = ImageTransform(ends.processor.image_processor)
    for batch in image_batches(transform, data.images, batch_size, None, model.device):
        if len(batch.rows):
            pixel_values = transform.pixel_values(batch.columns["pixels"], model.device, model.dtype)
            outputs.append(model.vision_model(pixel_values=pixel_values).pooler_output.cpu())
        good_rows += batch.rows.tolist()
        bad_images |= batch.bad
        on_batch(batch.total)

    @torch.inference_mode()
    def embed(model: BertCLIPModel) -> Embedded:
        embeds = [torch.empty(0, model.config.projection_dim)]
        embeds += [normalize(model.visual_projection(output.to(model.device)), "image") for output in outputs]
        return Embedded("image", data.images, torch.cat(embeds), good_rows, bad_images)

    return embed
