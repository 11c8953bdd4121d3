"""How good the models between two checkpoints are, on data that tuning was for and on data that it was not for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from component.blend import Ends
from component.embedding import Embedded, embed_images, embed_texts, image_batches, normalize
from component.evaluation.retrieval import rank_pairs
from component.evaluation.retrieval_data import RetrievalData
from component.model import BertCLIPModel


@dataclass(frozen=True)
class Blend:
    """One alpha, and the metrics of `evaluate_retrieval` there.

    Attributes:
        own: of the data that tuning was for.
        kept: of the data whose recall is to be kept; None where there is none.
    """

    alpha: float
    own: dict[str, float]
    kept: dict[str, float] | None = None

    @property
    def score(self) -> float:
        """The mean recall, of both data sets alike where there are two."""
        return mean(metrics["mean_recall"] for metrics in (self.own, self.kept) if metrics)


@dataclass(frozen=True)
class Sweep:
    """Blends in the order of their alphas, and image name → reason of the pictures that were left out."""

    blends: list[Blend]
    bad_images: dict[str, str]

    @property
    def best(self) -> Blend:
        """The one of the highest score; of equal ones that of the lowest alpha, which has changed least."""
        return max(self.blends, key=lambda blend: (blend.score, -blend.alpha))


def num_items(ends: Ends, own: RetrievalData, kept: RetrievalData | None, alphas: Sequence[float]) -> int:
    """How many texts and pictures `sweep` puts through a tower."""
    passes = 1 if ends.image_tower_is_locked else len(alphas)
    return sum(len(alphas) * len(data.texts) + passes * len(data.images) for data in (own, kept) if data)


def sweep(
    ends: Ends,
    own: RetrievalData,
    kept: RetrievalData | None,
    alphas: Sequence[float],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Sweep:
    """Embed and rank each data set with each blend. Through a locked vision tower each picture goes only once.

    Args:
        alphas: each from 0 to 1.
        on_batch: called with the number of items that went through a tower.

    Raises:
        ValueError: an alpha that is none; a data set of which no picture can be read.
    """
    found, bad_images = [], {}
    for data in filter(None, (own, kept)):
        embed = _once(ends, data, batch_size, on_batch) if ends.image_tower_is_locked else None
        metrics = []
        for alpha in alphas:
            model = ends.at(alpha)
            if embed:
                images = embed(model)
            else:
                images = embed_images(model, ends.processor, data.images, batch_size, on_batch=on_batch)
            texts = embed_texts(model, ends.processor, data.texts, batch_size, on_batch=on_batch)
            metrics.append(rank_pairs(data, images, texts, num_mistakes=0).metrics)
        bad_images |= {data.image_names[row]: reason for row, reason in images.bad_images.items()}
        found.append(metrics)
    return Sweep([Blend(*one) for one in zip(alphas, *found, strict=True)], bad_images)


@torch.inference_mode()
def _once(
    ends: Ends, data: RetrievalData, batch_size: int, on_batch: Callable[[int], None]
) -> Callable[[BertCLIPModel], Embedded]:
    """Put the pictures through the vision tower; what comes back projects what it gave, as a model does."""
    model, outputs, good_rows, bad_images = ends.model, [], [], {}
    for batch in image_batches(ends.processor, data.images, batch_size, None, model.device):
        if len(batch.rows):
            pixel_values = batch.columns["pixel_values"].to(model.device, model.dtype, non_blocking=True)
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
