"""What `train_clip.py` trains: model, data sets and image features, as the arguments say."""

import logging
import math
import os
import sys
from collections.abc import Callable

import torch
import transformers
from huggingface_hub import create_repo
from torch import Tensor
from transformers import CLIPProcessor, set_seed

from component.argument import CLIPTrainingArguments
from component.checkpoint import ancestor_digest, read_ancestors
from component.checkpoint import load_model as load_bert_clip
from component.dataset import PairDataset, Pairs
from component.ground.files import write_json
from component.ground.plain_text import one_line
from component.hub.identity import image_tower
from component.hub.pretrained import BERT_CLIP, IMAGE_TOWER, TEXT_TOWER, Use, check_pretrained
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.pair_table import KEY_FORMAT
from component.processor import load_processor, require_fitting
from component.training.feature_cache import FeatureCache, cache_features
from component.training.learning_rates import rates_of
from component.training.lora import add_lora
from component.training.shared_work import SharedWork

logger = logging.getLogger(__name__)

# Shares of [UNK] among the tokens of a table. Chinese BERTs leave well below 1 % of web captions unknown.
MANY_UNKNOWN, MOST_UNKNOWN = 0.1, 0.9
WHOLE = 2**31  # tokens: longer than any text
MANY_CUT = 0.1  # of the texts
MANY_REPEATED = 0.3  # of the captions


def require_hub(args: CLIPTrainingArguments) -> None:
    """Make the repository that `push_to_hub` pushes to, as the Trainer will, or raise ValueError."""
    if not args.push_to_hub or args.process_index:
        return
    name = args.hub_model_id or os.path.basename(args.output_dir)
    try:
        create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True)
    except Exception as error:  # of the Hub, or of whatever connects to it
        raise ValueError(
            f"`push_to_hub`: the Hub has no place for {name} ({one_line(error)}). Check network, token and "
            "hub_model_id, or leave push_to_hub out."
        ) from error


def load_model(args: CLIPTrainingArguments) -> tuple[BertCLIPModel, CLIPProcessor]:
    """The model, locked and with LoRA as the arguments say, and its processor."""
    set_seed(args.seed)  # the new text_projection is drawn here, before the Trainer sets its seed
    if args.load_from_bert_clip:
        _check_pretrained(args, clip_pretrain_path=BERT_CLIP)
        model = load_bert_clip(args.clip_pretrain_path, dtype=torch.float32)
        model.ancestors = [*(read_ancestors(args.clip_pretrain_path) or ()), ancestor_digest(model)]
        if args.text_pooling not in (None, model.config.text_pooling):
            raise ValueError(
                f"`text_pooling` is {args.text_pooling}, but {args.clip_pretrain_path} was trained with "
                f"{model.config.text_pooling}: leave text_pooling out."
            )
    else:
        _check_pretrained(args, clip_pretrain_path=IMAGE_TOWER, bert_pretrain_path=TEXT_TOWER)
        model = BertCLIPModel.from_vision_text_pretrained(
            args.clip_pretrain_path, args.bert_pretrain_path, text_pooling=args.text_pooling or "pooler"
        )
        model.ancestors = []
    model.set_loss(args.loss_type)
    if args.trainable_vision_blocks is not None:
        model.lock_vision(args.trainable_vision_blocks)
    if args.lora_rank is not None:
        add_lora(model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_targets)
    rates_of(model, args)  # which raises for a part that is not there
    positions = model.config.text_config.max_position_embeddings
    if args.max_seq_length > positions:
        raise ValueError(f"`max_seq_length` is {args.max_seq_length}, but the text tower has {positions} positions.")
    tokenizer_path = None if args.load_from_bert_clip else args.bert_pretrain_path
    processor = load_processor(args.clip_pretrain_path, tokenizer_path, max_length=positions)
    require_fitting(processor, model.config, args.clip_pretrain_path)
    return model, processor


def _check_pretrained(args: CLIPTrainingArguments, **uses: Use) -> None:
    """Name the key of a folder that is not there or of another kind, before any weights are read."""
    for key, use in uses.items():
        try:
            check_pretrained(getattr(args, key), use)
        except ValueError as error:
            raise ValueError(f"`{key}`: {error}") from error


def load_datasets(
    args: CLIPTrainingArguments, processor: CLIPProcessor, whole_texts: bool = False
) -> tuple[PairDataset, PairDataset | None]:
    """The pairs for training, their pictures augmented as the arguments say, and those for testing, if any.

    All processes of a training call it together, because they share the reading.

    Args:
        whole_texts: do not cut them to max_seq_length; such a table is not kept.
    """
    max_seq_length = WHOLE if whole_texts else args.max_seq_length
    # Pictures that are decoded once, or tested on, are worth the exact decoder.
    transform = ImageTransform(
        processor.image_processor, args.min_crop_area, args.random_flip, draft=args.images_change
    )
    folder = None if whole_texts or args.pair_table == "off" else args.pair_table
    work = SharedWork(args.dataloader_num_workers)
    return tuple(
        PairDataset(file, args.image_path, processor, max_seq_length, transform, folder, work) if file else None
        for file, transform in ((args.train_file, transform), (args.test_file, None))
    )


def require_images(*datasets: Pairs | None) -> None:
    """Raise ValueError where no picture of a table can be read, and warn where most of some pictures cannot."""
    for dataset in filter(None, datasets):
        rows = dataset.some_rows()
        bad = dataset.images.load(rows).bad
        if len(bad) == len(rows):
            dataset.require_an_image()
        if len(bad) > len(rows) / 2:
            logger.warning(
                "%s: %d of the %d pictures that were looked at cannot be used (the first: %s), and so most of its "
                "pairs will be dropped. Check image_path (%s), and what was downloaded.",
                *(dataset.table.file, len(bad), len(rows), next(iter(bad.values())), dataset.table.image_path),
            )


def warn_of_texts(args: CLIPTrainingArguments, model: BertCLIPModel, train: Pairs, test: Pairs | None) -> None:
    """Say where much of what the texts tell is lost, or is taken for wrong."""
    positions = model.config.text_config.max_position_embeddings
    more = f"the text tower has {positions} positions" if args.max_seq_length < positions else "shorten the texts"
    for table in (dataset.table for dataset in (train, test) if dataset is not None):
        share = table.num_long_texts / len(table)
        if share > MANY_CUT:
            logger.warning(
                "%s: %.1f%% of the texts are cut to max_seq_length %d, and the model does not see the rest. Raise it "
                "(%s); check_data: true shows how long they are.",
                *(table.file, 100 * share, args.max_seq_length, more),
            )
    share = train.table.share_of_repeated_captions
    if share > MANY_REPEATED and not args.mask_duplicates:
        logger.warning(
            "%s: %.1f%% of the captions repeat, and where two meet in a batch, each is told apart from the other's "
            "picture, which it fits. Set mask_duplicates to true.",
            *(train.table.file, 100 * share),
        )


def require_a_step(args: CLIPTrainingArguments, num_pairs: int) -> None:
    """Raise ValueError where an epoch, or the whole training, would be of no step."""
    batch = args.per_device_train_batch_size * args.world_size
    if args.auto_find_batch_size:
        return
    if args.dataloader_drop_last and num_pairs < batch:
        raise ValueError(
            f"`dataloader_drop_last` leaves no step of an epoch: {num_pairs} pairs are less than a batch of {batch} "
            f"(per_device_train_batch_size × {args.world_size} processes). Set it to false, or take smaller batches."
        )
    steps = math.ceil(num_pairs / (batch * args.gradient_accumulation_steps))
    if args.max_steps < 1 and args.num_train_epochs * steps < 1:
        raise ValueError(
            f"`num_train_epochs` is {args.num_train_epochs:g}, which is not one step: an epoch has {steps}. Take more "
            "of it, or set max_steps to 1."
        )


def check_tokens(args: CLIPTrainingArguments, model: BertCLIPModel, *datasets: Pairs | None) -> None:
    """Raise ValueError where tokenizer and text tower, or tokenizer and texts, do not belong together."""
    vocabulary = args.clip_pretrain_path if args.load_from_bert_clip else args.bert_pretrain_path
    embeddings = model.config.text_config.vocab_size
    for table in (dataset.table for dataset in datasets if dataset is not None):
        if table.highest_token_id >= embeddings:
            raise ValueError(
                f"{table.file} has a token of id {table.highest_token_id}, but the text tower has embeddings for "
                f"{embeddings}. The tokenizer of {vocabulary} has tokens that were added to it: remove them from its "
                "files, or resize the embeddings (resize_token_embeddings) and save the model."
            )
        unknown = f"{table.file}: {table.share_of_unknown:.1%} of the tokens are [UNK]"
        if table.share_of_unknown >= MOST_UNKNOWN:
            raise ValueError(
                f"{unknown}: the vocabulary of {vocabulary} does not have the characters of these texts. Check its "
                "vocab.txt or tokenizer.json, and the encoding and language of the texts."
            )
        if table.share_of_unknown > MANY_UNKNOWN:
            logger.warning("%s, all alike to the model: the vocabulary of %s lacks them.", unknown, vocabulary)


def describe(*datasets: Pairs | None) -> None:
    """Log what the tables hold, and what of it is left out."""
    for dataset in filter(None, datasets):
        table = dataset.table
        logger.info(
            "%s: %d pairs; left out for an empty text: %d; cut to max_seq_length: %d; repeated captions: %.1f%%; "
            "unknown characters ([UNK]): %.1f%%",
            table.file,
            len(table),
            table.num_empty_texts,
            table.num_long_texts,
            100 * table.share_of_repeated_captions,
            100 * table.share_of_unknown,
        )


def _precision(args: CLIPTrainingArguments) -> torch.dtype:
    return torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32


def feature_encoder(args: CLIPTrainingArguments, model: BertCLIPModel) -> Callable[[Tensor], Tensor]:
    """The vision tower on its device: (B, 3, H, W) pixel_values → (B, width) pooled output.

    In the precision of training, so that training on the cache is training without it.
    """
    tower, precision = model.vision_model.to(args.device), _precision(args)

    @torch.no_grad()
    def encode(pixel_values: Tensor) -> Tensor:
        with torch.autocast(args.device.type, precision, enabled=precision != torch.float32):
            return tower(pixel_values.to(args.device)).pooler_output

    return encode


def cache_images(
    args: CLIPTrainingArguments, model: BertCLIPModel, *datasets: PairDataset | None
) -> tuple[Pairs | None, ...]:
    """The datasets with every picture put through the locked tower once, if the arguments allow it."""
    if args.image_feature_cache == "off":
        return datasets
    tower, encode = model.vision_model, feature_encoder(args, model)
    image_processor = next(dataset for dataset in datasets if dataset is not None).images.transform.image_processor
    key = image_tower(tower, image_processor).digest(str(_precision(args)), KEY_FORMAT)
    cache = FeatureCache(args.image_feature_cache, key, tower.config.hidden_size, verify=args.verify_image_features)

    def cached(dataset: PairDataset) -> Pairs:
        images = cache_features(
            dataset.images,
            cache,
            encode,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            show_progress=not args.disable_tqdm,
        )
        return Pairs(dataset.table, images)

    return tuple(None if dataset is None else cached(dataset) for dataset in datasets)


def record(args: CLIPTrainingArguments) -> None:
    """Write down what runs: the resolved arguments, which train_clip.py can read again, and the versions."""
    if args.process_index == 0:
        os.makedirs(args.output_dir, exist_ok=True)
        write_json(os.path.join(args.output_dir, "train_args.json"), args.to_dict())
        versions = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        write_json(os.path.join(args.output_dir, "versions.json"), versions)
