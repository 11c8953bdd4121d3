"""The teacher of a distillation: its embeddings of the training pairs, computed once and kept on disk."""

from collections import ChainMap
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPProcessor

from component.argument import CLIPTrainingArguments
from component.checkpoint import load_text_checkpoint
from component.dataset import Pairs
from component.hub.identity import ModelIdentity, identity_of, image_differences, tokenizer_digest
from component.image.batch import ImageBatch
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.image_source import DecodedImages, GoodRows
from component.pairs.pair_table import KEY_FORMAT
from component.processor import TextProcessor
from component.training.data import load_train_table
from component.training.feature_cache import FeatureCache
from component.training.image_features import CachedImages, cache_features
from component.training.locked_towers import feature_autocast, feature_precision
from component.training.text_features import text_features


class Teacher(NamedTuple):
    """A model in eval mode, and what its embeddings are known by."""

    model: BertCLIPModel
    processor: CLIPProcessor | TextProcessor
    identity: ModelIdentity


def load_teacher(
    args: CLIPTrainingArguments, model: BertCLIPModel, processor: CLIPProcessor | TextProcessor
) -> Teacher | None:
    """Load `distill_from`, if there is one.

    Args:
        model, processor: what learns from it.

    Raises:
        ValueError: the folder cannot be loaded, or the model cannot learn from it.
    """
    if not args.distill_from:
        return None
    try:
        teacher, its_processor = load_text_checkpoint(args.distill_from)
    except ValueError as error:
        raise ValueError(f"`distill_from`: {error}") from error
    has_images = teacher.config.has_image_half
    if args.trains_image_embeds and not has_images:
        raise ValueError(
            f"`distill_from`: {args.distill_from} is a text tower alone and embeds no images. Lock the image half "
            "(freeze_vision and freeze_visual_projection true), or train with image_vectors."
        )
    identity = identity_of(teacher, its_processor)
    is_same_space = model.config.has_image_half and has_images and model.to_teacher is None
    if is_same_space and not args.trains_image_embeds:
        if differences := image_differences(identity, identity_of(model, processor), model):
            raise ValueError(
                f"`distill_from`: the image half is locked, but it is not that of {args.distill_from} "
                f"({'; '.join(differences)}): texts cannot be close to both. Set clip_pretrain_path to the teacher, "
                "or freeze_visual_projection to false."
            )
    return Teacher(teacher, its_processor, identity)


def with_teacher(args: CLIPTrainingArguments, teacher: Teacher, tokenizer, pairs: Pairs) -> Pairs:
    """Add the teacher's embeddings: teacher_text_embeds (n, width), and teacher_image_embeds unless the model's own
    embeddings of images stay as they are. They are of captions and images as they are, not as training changes them.

    With several processes, all call this together.

    Args:
        tokenizer: of the model that learns.

    Raises:
        ValueError, RunFailed, OSError: as `cache_features` and `text_features`.
    """
    model, processor, identity = teacher
    model = model.to(args.device, torch.float32)
    precision, width = feature_precision(args), model.config.projection_dim
    positions = model.config.text_config.max_position_embeddings
    options = {"verify": args.verify_image_features, "key": "distill_cache"}

    @torch.no_grad()
    def encode(embed, *inputs: Tensor) -> Tensor:
        with feature_autocast(args):
            return F.normalize(embed(*(tensor.to(args.device) for tensor in inputs)).float(), dim=-1)

    def cache(of: str, *more) -> FeatureCache:
        digest = getattr(identity, of).digest(str(precision), *more)
        return FeatureCache(f"{args.distill_cache}/{of}", digest, width, of=of, **options)

    table, length = pairs.table, min(args.max_seq_length, positions)
    digests = {tokenizer_digest(one.backend_tokenizer) for one in (tokenizer, processor.tokenizer)}
    if len(digests) > 1 or length < args.max_seq_length:
        table = load_train_table(args, processor.tokenizer, length)
    texts = text_features(
        table,
        cache("text", length),
        lambda *tokens: encode(model.get_text_features, *tokens),
        processor.tokenizer.pad_token_id,
        args.per_device_eval_batch_size,
        show_progress=not args.disable_tqdm,
    )
    pairs = pairs.replaced(texts={"teacher_text_embeds": texts})
    if not args.trains_image_embeds:
        return pairs
    transform = ImageTransform(processor.image_processor)
    images = cache_features(
        DecodedImages(pairs.table, transform),
        cache("image", KEY_FORMAT),
        lambda pixels: encode(model.get_image_features, transform.pixel_values(pixels, args.device)),
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
        show_progress=not args.disable_tqdm,
    )
    return pairs.replaced(images=TaughtImages(pairs, images))


class TaughtImages:
    """The images of some pairs, with the teacher's embeddings: teacher_image_embeds (n, width). An `ImageSource`."""

    def __init__(self, pairs: Pairs, taught: CachedImages):
        self._images, self._taught = pairs.images, taught.features
        self.bad = ChainMap(taught.bad, pairs.images.bad) if len(pairs.images.bad) else taught.bad
        self.rows = GoodRows(len(pairs.table), sorted(self.bad))
        self.bytes_per_image = pairs.images.bytes_per_image + taught.bytes_per_image

    def load(self, rows: Sequence[int], generator: torch.Generator | None = None) -> ImageBatch:
        batch = self._images.load(rows, generator)
        if not len(batch.rows):
            return batch
        return batch._replace(columns={**batch.columns, "teacher_image_embeds": self._taught[batch.rows]})
