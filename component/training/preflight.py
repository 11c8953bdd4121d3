"""Judges model and data before a run: what would fail in the middle of it is said before the first step."""

import logging
import math
import os

from huggingface_hub import create_repo

from component.argument import CLIPTrainingArguments
from component.dataset import Pairs
from component.ground.plain_text import one_line
from component.model import BertCLIPModel
from component.pairs.pair_table import PairTable
from component.training.first_process import on_first_process

logger = logging.getLogger(__name__)

# Shares of [UNK] among the tokens of a table. Chinese BERTs leave well below 1 % of web captions unknown.
MANY_UNKNOWN, TOO_MANY_UNKNOWN = 0.1, 0.9
MANY_TRUNCATED = 0.1  # of the captions
MANY_REPEATED = 0.3  # of the captions
MUCH_WRITTEN = 1e11  # bytes of all checkpoints of a run


def preflight(args: CLIPTrainingArguments, model: BertCLIPModel, train: Pairs, test: Pairs | None = None) -> None:
    """Log what the tables contain, warn about what is doubtful, and raise ValueError for what cannot be trained."""
    tables = [train.table] if test is None else [train.table, test.table]
    for table in tables:
        _log_contents(table)
    for dataset in filter(None, (train, test)):
        _require_images(dataset)
    require_known_tokens(args, model, *tables)
    require_steps(args, len(train))
    _warn_of_long_warmup(args, len(train))
    _log_cost_of_saving(args, model, len(train))
    _require_hub_repository(args)
    for table in tables:
        _warn_of_truncated_captions(args, model, table)
    _warn_of_repeated_captions(args, train.table)


def require_known_tokens(args: CLIPTrainingArguments, model: BertCLIPModel, *tables) -> None:
    """Raise ValueError if the tokenizer does not fit the text tower, or the captions do not fit the tokenizer.

    Args:
        tables: with the attributes file, highest_token_id and share_of_unknown of `PairTable`.
    """
    tokenizer = args.clip_pretrain_path if args.load_from_bert_clip else args.bert_pretrain_path
    embeddings = model.config.text_config.vocab_size
    for table in tables:
        if table.highest_token_id >= embeddings:
            raise ValueError(
                f"{table.file} has a token with id {table.highest_token_id}, but the text tower has only {embeddings} "
                f"embeddings: tokens were added to the tokenizer of {tokenizer}. Remove them from its files, or "
                "resize the embeddings (resize_token_embeddings) and save the model."
            )
        unknown = f"{table.file}: {table.share_of_unknown:.1%} of the tokens are [UNK]"
        if table.share_of_unknown >= TOO_MANY_UNKNOWN:
            raise ValueError(
                f"{unknown}: the vocabulary of {tokenizer} lacks the characters of these captions. Check its "
                "vocab.txt or tokenizer.json, and the encoding and language of the captions."
            )
        if table.share_of_unknown > MANY_UNKNOWN:
            logger.warning(
                "%s, which the model cannot distinguish: the vocabulary of %s lacks these characters.",
                *(unknown, tokenizer),
            )


def require_steps(args: CLIPTrainingArguments, num_pairs: int) -> None:
    """Raise ValueError if an epoch, or the whole run, has no step."""
    batch = args.per_device_train_batch_size * args.world_size
    if args.auto_find_batch_size:
        return
    if args.dataloader_drop_last and num_pairs < batch:
        raise ValueError(
            f"`dataloader_drop_last` leaves no step in an epoch: there are {num_pairs} pairs, fewer than a batch of "
            f"{batch} (per_device_train_batch_size × {args.world_size} processes). Set it to false, or use smaller "
            "batches."
        )
    steps = _steps_per_epoch(args, num_pairs)
    if args.max_steps < 1 and args.num_train_epochs * steps < 1:
        raise ValueError(
            f"`num_train_epochs` is {args.num_train_epochs:g}, which is less than one step: an epoch has {steps}. "
            "Raise it, or set max_steps to 1."
        )


def _steps_per_epoch(args: CLIPTrainingArguments, num_pairs: int) -> int:
    batch = args.per_device_train_batch_size * args.world_size
    batches = num_pairs // batch if args.dataloader_drop_last else math.ceil(num_pairs / batch)
    return math.ceil(batches / args.gradient_accumulation_steps)


def _steps_of_run(args: CLIPTrainingArguments, num_pairs: int) -> int:
    return (
        args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * _steps_per_epoch(args, num_pairs))
    )


def _warn_of_long_warmup(args: CLIPTrainingArguments, num_pairs: int) -> None:
    """A recipe for millions of pairs has a warm-up that a small data set never leaves."""
    per_epoch, steps = _steps_per_epoch(args, num_pairs), _steps_of_run(args, num_pairs)
    warmup = args.get_warmup_steps(steps)
    if warmup > steps / 2 and args.lr_scheduler_type != "constant":
        peak = args.learning_rate * min(1, steps / warmup)
        logger.warning(
            "the warm-up takes %d steps, but the run has only %d (%d per epoch): for most of it the learning rate is "
            "still rising, up to %.2g, and the model hardly learns. Set warmup_steps to %d, or train longer.",
            *(warmup, steps, per_epoch, peak, max(steps // 10, 1)),
        )


def _log_cost_of_saving(args: CLIPTrainingArguments, model: BertCLIPModel, num_pairs: int) -> None:
    """A recipe that saves often writes more bytes than the images have, and training waits for each checkpoint."""
    if args.save_strategy != "steps":
        return
    steps = _steps_of_run(args, num_pairs)
    every = max(1, int(args.save_steps if args.save_steps >= 1 else steps * args.save_steps))
    # The weights, and AdamW's two numbers for each one that is trained.
    size = sum(weights.nbytes * (3 if weights.requires_grad else 1) for weights in model.parameters())
    if size * (steps // every) > MUCH_WRITTEN:
        logger.info(
            "save_steps %d: %d checkpoints of about %.2f GB will be written, %.0f GB in all. With save_steps %d it "
            "would be %d and %.0f GB, and a crash would cost at most %d steps.",
            *(every, steps // every, size / 1e9, size * (steps // every) / 1e9),
            *(10 * every, steps // (10 * every), size * (steps // (10 * every)) / 1e9, 10 * every),
        )


def _log_contents(table: PairTable) -> None:
    logger.info(
        "%s: %d pairs; empty captions (left out): %d; truncated to max_seq_length: %d; repeated captions: %.1f%%; "
        "unknown characters ([UNK]): %.1f%%",
        *(table.file, len(table), table.num_empty_texts, table.num_long_texts),
        *(100 * table.share_of_repeated_captions, 100 * table.share_of_unknown),
    )


def _require_images(dataset: Pairs) -> None:
    rows = dataset.some_rows()
    bad = dataset.images.load(rows).bad
    if len(bad) == len(rows):
        dataset.require_an_image()
    if len(bad) > len(rows) / 2:
        logger.warning(
            "%s: %d of the %d images checked cannot be used (the first: %s), so most of the pairs will be left out. "
            "Check image_path (%s) and what was downloaded.",
            *(dataset.table.file, len(bad), len(rows), next(iter(bad.values())), dataset.table.image_path),
        )


def _require_hub_repository(args: CLIPTrainingArguments) -> None:
    """Create the repository that `push_to_hub` pushes to, as the Trainer does."""
    name = args.hub_model_id or os.path.basename(args.output_dir)

    def create() -> None:
        try:
            create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True)
        except Exception as error:  # of the Hub, or of the network library
            raise ValueError(
                f"`push_to_hub`: the repository {name} cannot be created on the Hub ({one_line(error)}). Check "
                "network, token and hub_model_id, or leave push_to_hub out."
            ) from error

    if args.push_to_hub:
        on_first_process(create)


def _warn_of_truncated_captions(args: CLIPTrainingArguments, model: BertCLIPModel, table: PairTable) -> None:
    share = table.num_long_texts / len(table)
    positions = model.config.text_config.max_position_embeddings
    limit = f"the text tower has {positions} positions" if args.max_seq_length < positions else "shorten the captions"
    if share > MANY_TRUNCATED:
        logger.warning(
            "%s: %.1f%% of the captions are truncated to max_seq_length %d, and the model does not see the rest. "
            "Raise it (%s); check_data: true shows how long the captions are.",
            *(table.file, 100 * share, args.max_seq_length, limit),
        )


def _warn_of_repeated_captions(args: CLIPTrainingArguments, table: PairTable) -> None:
    share = table.share_of_repeated_captions
    if share > MANY_REPEATED and not args.mask_duplicates:
        logger.warning(
            "%s: %.1f%% of the captions repeat. When two pairs with the same caption meet in a batch, they are "
            "trained as negatives of each other. Set mask_duplicates to true.",
            *(table.file, 100 * share),
        )
