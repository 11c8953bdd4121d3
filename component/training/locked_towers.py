"""What locked towers compute of the pairs, computed once: the output of each for its images or texts."""

from collections.abc import Callable

import torch
from torch import Tensor

from component.argument import CLIPTrainingArguments
from component.dataset import Pairs
from component.hub.identity import image_tower, text_tower
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.pair_table import KEY_FORMAT
from component.training.feature_cache import FeatureCache
from component.training.image_features import cache_features
from component.training.text_features import text_features


def cache_images(
    args: CLIPTrainingArguments, model: BertCLIPModel, *datasets: Pairs | None
) -> tuple[Pairs | None, ...]:
    """Replace the images of each dataset by the locked tower's output, computed once, if the arguments allow it."""
    if args.image_feature_cache == "off":
        return datasets
    transform = next(dataset for dataset in datasets if dataset is not None).images.transform
    tower, encode = model.vision_model, feature_encoder(args, model, transform)
    key = image_tower(tower, transform.image_processor).digest(str(feature_precision(args)), KEY_FORMAT)
    cache = FeatureCache(args.image_feature_cache, key, tower.config.hidden_size, verify=args.verify_image_features)

    def cached(dataset: Pairs) -> Pairs:
        images = cache_features(
            dataset.images,
            cache,
            encode,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            show_progress=not args.disable_tqdm,
        )
        return dataset.replaced(images=images)

    return tuple(None if dataset is None else cached(dataset) for dataset in datasets)


def cache_texts(
    args: CLIPTrainingArguments, model: BertCLIPModel, tokenizer, *datasets: Pairs | None
) -> tuple[Pairs | None, ...]:
    """Replace the tokens of each dataset by the locked text tower's output, computed once, if the arguments allow
    it."""
    if args.text_feature_cache == "off":
        return datasets
    tower = model.text_model.to(args.device)
    key = text_tower(tower, tokenizer).digest(str(feature_precision(args)), args.max_seq_length)
    cache = FeatureCache(
        args.text_feature_cache, key, tower.config.hidden_size, verify=args.verify_image_features, of="text"
    )

    @torch.no_grad()
    def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with feature_autocast(args):
            return tower(input_ids.to(args.device), attention_mask.to(args.device)).pooler_output

    def cached(dataset: Pairs) -> Pairs:
        features = text_features(
            dataset.table,
            cache,
            encode,
            tokenizer.pad_token_id,
            args.per_device_eval_batch_size,
            show_progress=not args.disable_tqdm,
        )
        return dataset.replaced(texts={"text_pooler_output": features})

    return tuple(None if dataset is None else cached(dataset) for dataset in datasets)


def feature_encoder(
    args: CLIPTrainingArguments, model: BertCLIPModel, transform: ImageTransform
) -> Callable[[Tensor], Tensor]:
    """The vision tower on its device: (B, H, W, 3) uint8 pixels → (B, vision_hidden) pooled output.

    It runs in the precision of training, so that training with the cache equals training without it.
    """
    tower = model.vision_model.to(args.device)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with feature_autocast(args):
            return tower(transform.pixel_values(pixels, args.device)).pooler_output

    return encode


def feature_precision(args: CLIPTrainingArguments) -> torch.dtype:
    """The precision in which locked towers and a teacher compute."""
    return torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32


def feature_autocast(args: CLIPTrainingArguments) -> torch.autocast:
    """The context in which they compute."""
    precision = feature_precision(args)
    return torch.autocast(args.device.type, precision, enabled=precision != torch.float32)
