"""The pairs that a run is trained and tested on, as its arguments say."""

from typing import Any

from transformers import CLIPProcessor

from component.argument import CLIPTrainingArguments
from component.dataset import PairDataset, Pairs
from component.image.transform import ImageTransform
from component.pairs.columns import parse_columns
from component.pairs.keep_list import KeepList, open_keep_list
from component.pairs.pair_table import ChunkEncoder, PairTable
from component.pairs.prepared import load_pair_table
from component.pairs.templates import read_templates
from component.pairs.text_augmentation import TextAugmentation
from component.processor import TextProcessor
from component.training.image_vectors import VectorImages, open_vectors
from component.training.shared_work import SharedWork


def load_datasets(args: CLIPTrainingArguments, processor: CLIPProcessor | TextProcessor) -> tuple[Pairs, Pairs | None]:
    """Load the training pairs, with the random changes that the arguments ask for, and the test pairs, if any.

    With image_vectors, the images of both are these vectors.

    All processes call it together, because they share the work of reading.

    Raises:
        ValueError: a table cannot be read, or the tokenizer cannot make the random changes.
    """
    reading = _reading(args)

    def load(
        file,
        transform: ImageTransform | None = None,
        augmentation: TextAugmentation | None = None,
        keep_list: KeepList | None = None,
    ) -> Pairs:
        if not args.image_vectors:
            options = {"transform": transform, "augmentation": augmentation, "keep_list": keep_list, **reading}
            return PairDataset(file, args.image_path, processor, args.max_seq_length, **options)
        encoder = ChunkEncoder(processor.tokenizer, args.max_seq_length)
        table = load_pair_table(file, args.image_path or "", encoder, keep_list=keep_list, **reading)
        vectors = open_vectors(args.image_vectors)
        return Pairs(table, VectorImages(table, vectors, args.image_vector_ids, args.image_path), augmentation)

    augmentation, transform = text_augmentation(args, processor.tokenizer), None
    if not args.image_vectors:
        # The fast JPEG decoder is for images that are decoded in every epoch; all others get the exact one.
        crops = args.min_crop_area, args.random_flip
        transform = ImageTransform(processor.image_processor, *crops, draft=args.images_change)
    train = load(args.train_file, transform, augmentation, open_keep_list(args.keep_list, args.train_file))
    return train, load(args.test_file) if args.test_file else None


def load_train_table(args: CLIPTrainingArguments, tokenizer, max_seq_length: int) -> PairTable:
    """The table of the training pairs, in the tokens of another tokenizer. All processes call it together."""
    keep_list = open_keep_list(args.keep_list, args.train_file)
    encoder = ChunkEncoder(tokenizer, max_seq_length)
    return load_pair_table(args.train_file, args.image_path or "", encoder, keep_list=keep_list, **_reading(args))


def _reading(args: CLIPTrainingArguments) -> dict[str, Any]:
    """How tables are read: arguments of `load_pair_table`."""
    columns = parse_columns(args.columns) if args.columns else None
    folder = None if args.pair_table == "off" else args.pair_table
    return {"columns": columns, "folder": folder, "work": SharedWork(args.dataloader_num_workers)}


def text_augmentation(args: CLIPTrainingArguments, tokenizer) -> TextAugmentation | None:
    """The random changes of the training texts; None if there are none. Raises ValueError as `TextAugmentation`."""
    if not (args.text_templates or args.text_noise):
        return None
    templates = read_templates(args.text_templates) if args.text_templates else ()
    return TextAugmentation(tokenizer, args.max_seq_length, templates, args.text_template_probability, args.text_noise)
