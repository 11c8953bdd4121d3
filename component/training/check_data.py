"""Read all data as training would, and report what is found, without training."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm
from transformers import CLIPProcessor

from component.argument import CLIPTrainingArguments
from component.dataset import Pairs
from component.image.batch import ImageBatch
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.image_source import DecodedImages
from component.processor import image_size
from component.training.data import load_datasets, text_augmentation
from component.training.locked_towers import feature_encoder
from component.training.preflight import require_known_tokens, require_steps
from component.training.survey import Texts, join, read_images, survey_texts

logger = logging.getLogger(__name__)

SAMPLES = 32
NAMED = 10  # bad images in the log
TIMED_BATCHES = 3
WHOLE_TEXTS = 2**31  # tokens: longer than any text


class Sample(NamedTuple):
    """A pair as the model gets it.

    Attributes:
        image: None if it is bad.
        reason: why the image is bad; None if it is good.
        tokens: of the whole text.
    """

    filename: str
    image: Image.Image | None
    reason: str | None
    tokens: list[str]


@dataclass(frozen=True)
class TableCheck:
    """What was found in one table.

    Attributes:
        num_images: good and bad images.
        bad: (filename, reason) of each image that cannot be used.
        bad_pairs: number of pairs with such an image.
        copies: number of good images with the same pixels as another one.
        copied: (filename, filename) of some of them.
        in_other: number of images in a test table whose pixels are also in the training table.
    """

    file: str
    num_pairs: int
    num_empty_texts: int
    share_of_unknown: float
    highest_token_id: int
    texts: Texts
    most_repeated: list[tuple[list[str], int]]
    num_images: int
    bad: list[tuple[str, str]]
    bad_pairs: int
    copies: int
    copied: list[tuple[str, str]]
    in_other: int | None = None


@dataclass
class DataCheck:
    """What was found in all tables.

    Attributes:
        problems: the errors with which training would stop.
        cache_minutes, cache_bytes: what a feature cache for all images would take; None if none is to be used.
    """

    max_seq_length: int
    unk_token: str
    batch: int
    tables: list[TableCheck] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cache_minutes: float | None = None
    cache_bytes: int | None = None

    def num_cut(self, table: TableCheck) -> int:
        return int((table.texts.lengths > self.max_seq_length).sum())


def check_data(args: CLIPTrainingArguments, model: BertCLIPModel, processor: CLIPProcessor) -> DataCheck:
    """Read everything that training would read. All processes call this together, and each reads a share.

    Raises:
        ValueError: a table cannot be read.
    """
    tokenizer = processor.tokenizer
    whole = copy.copy(args)  # captions as they are; such a table is not kept on disk
    whole.max_seq_length, whole.pair_table, whole.text_templates, whole.text_noise = WHOLE_TEXTS, "off", None, 0.0
    datasets = [dataset for dataset in load_datasets(whole, processor) if dataset is not None]
    found = DataCheck(args.max_seq_length, tokenizer.unk_token, args.per_device_train_batch_size * args.world_size)
    train, seconds, num_images, digests = datasets[0], 0.0, 0, np.empty(0, np.uint64)
    for dataset in datasets:
        start = time.perf_counter()
        images = _read_all(args, dataset, processor)
        seconds += time.perf_counter() - start
        num_images += len(images.rows)
        texts = survey_texts(dataset.table, found.batch, args.max_seq_length, tokenizer.unk_token_id)
        check = _check_table(dataset, images, texts, tokenizer, None if dataset is train else digests)
        digests = images.columns["digests"]
        found.tables.append(check)
    for problem in (
        lambda: text_augmentation(args, tokenizer),
        lambda: require_known_tokens(args, model, *found.tables),
        lambda: require_steps(args, len(train)),
        *(lambda check=check: _require_an_image(check) for check in found.tables),
    ):
        _note(found.problems, problem)
    found.samples = _samples(train, args.seed, tokenizer)
    if args.image_feature_cache != "off" and num_images:
        tower_seconds = _tower_seconds(args, model, train)
        decoding, towers = seconds, tower_seconds * num_images / args.world_size
        found.cache_minutes = (max(decoding, towers) if args.dataloader_num_workers else decoding + towers) / 60
        found.cache_bytes = num_images * (2 * model.config.vision_config.hidden_size + 8)
    _log(found)
    return found


def _read_all(args: CLIPTrainingArguments, dataset: Pairs, processor: CLIPProcessor) -> ImageBatch:
    plain = ImageTransform(processor.image_processor, draft=args.images_change)
    state = PartialState()
    rows = dataset.table.first_rows[state.process_index :: state.num_processes]
    with tqdm(total=len(rows), unit=" images", desc=dataset.table.file, disable=args.disable_tqdm) as bar:
        images = read_images(
            DecodedImages(dataset.table, plain),
            rows,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            bar.update,
        )
    return join(gather_object([images]))


def _check_table(
    dataset: Pairs, images: ImageBatch, texts: Texts, tokenizer, other_digests: np.ndarray | None
) -> TableCheck:
    table, bad = dataset.table, sorted(images.bad.items())
    digests = images.columns["digests"]
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    twins = [(images.rows[order[slot]], images.rows[order[slot + 1]]) for slot in same[:NAMED]]
    return TableCheck(
        file=table.file,
        num_pairs=len(table),
        num_empty_texts=table.num_empty_texts,
        share_of_unknown=texts.share_of_unknown,
        highest_token_id=texts.highest_token_id,
        texts=texts,
        most_repeated=[(_tokens(table, row, tokenizer), count) for row, count in texts.most_repeated],
        num_images=len(images.rows) + len(bad),
        bad=[(table.filename(row), reason) for row, reason in bad],
        bad_pairs=int(np.isin(table.image_ids, table.image_ids[[row for row, _ in bad]]).sum()) if bad else 0,
        copies=len(same),
        copied=[(table.filename(one), table.filename(other)) for one, other in twins],
        in_other=None if other_digests is None else int(np.isin(digests, other_digests).sum()),
    )


def _require_an_image(check: TableCheck) -> None:
    if len(check.bad) == check.num_images:
        raise ValueError(f"{check.file}: none of its {check.num_images} images can be read.")


def _note(problems: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except ValueError as error:
        problems.append(str(error))


def _samples(dataset: Pairs, seed: int, tokenizer) -> list[Sample]:
    rows = np.random.default_rng(seed).permutation(len(dataset))[:SAMPLES]
    generator, samples = torch.Generator().manual_seed(seed), []
    for row in rows.tolist():
        loaded = dataset.images.load([row], generator)
        image = None
        if not loaded.bad:
            image = Image.fromarray(loaded.columns["pixels"][0].numpy())
        reason = loaded.bad.get(row)
        samples.append(Sample(dataset.table.filename(row), image, reason, _tokens(dataset.table, row, tokenizer)))
    return samples


def _tokens(table, row: int, tokenizer) -> list[str]:
    return tokenizer.convert_ids_to_tokens(table.tokens(np.array([row]))[0].tolist())


def _tower_seconds(args: CLIPTrainingArguments, model: BertCLIPModel, dataset: Pairs) -> float:
    """Seconds per image in the locked tower, with evaluation batches, after one to warm up."""
    encode = feature_encoder(args, model, dataset.images.transform)
    size = image_size(dataset.images.transform.image_processor)
    batch = torch.zeros(min(args.per_device_eval_batch_size, len(dataset)), *size, 3, dtype=torch.uint8)
    encode(batch).cpu()
    start = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        encode(batch).cpu()
    return (time.perf_counter() - start) / (TIMED_BATCHES * len(batch))


def _log(found: DataCheck) -> None:
    for table in found.tables:
        cut = found.num_cut(table)
        logger.info(
            "%s: %d pairs; empty captions (left out): %d; truncated to max_seq_length %d: %d (%.1f%%); "
            "repeated captions: %d, with the same image too: %d; unknown characters ([UNK]): %.1f%%; "
            "images: %d, of which bad: %d (of %d pairs), copies of others: %d",
            *(table.file, table.num_pairs, table.num_empty_texts, found.max_seq_length),
            *(cut, 100 * cut / table.num_pairs, table.texts.repeated, table.texts.repeated_pairs),
            *(100 * table.share_of_unknown, table.num_images, len(table.bad), table.bad_pairs, table.copies),
        )
        for _, reason in table.bad[:NAMED]:
            logger.warning("%s: %s", table.file, reason)
        if len(table.bad) > NAMED:
            logger.warning("%s: and %d more bad images", table.file, len(table.bad) - NAMED)
        if table.in_other:
            logger.warning("%s: %d of its images are in train_file too", table.file, table.in_other)
    for problem in found.problems:
        logger.warning("training would stop: %s", problem)
    if found.cache_minutes is not None:
        logger.info(
            "a feature cache would take %.1f minutes and %.1f MB", found.cache_minutes, found.cache_bytes / 1e6
        )
