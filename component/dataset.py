"""Rows of a pair table → examples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPProcessor

from component.image.transform import ImageTransform
from component.pairs.image_source import DecodedImages, ImageSource
from component.pairs.pair_table import ChunkEncoder, PairTable
from component.pairs.prepared import load_pair_table
from component.pairs.text_augmentation import TextAugmentation


class SeededIndices(ABC):
    """What a batch sampler asks of `Pairs`: n examples, and seeds for what is random in them."""

    @property
    @abstractmethod
    def indices(self) -> np.ndarray:
        """(n,) int64."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of the crops and flips of these n images."""

    @property
    @abstractmethod
    def epoch_seed(self) -> tuple[int, ...]:
        """Of the changes of the texts, which depend on the row, not on the batch."""


class TextColumn(Protocol):
    """Vectors of the texts of a table's rows.

    bytes_per_row: size of one.
    """

    bytes_per_row: int

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """(n,) rows → (n, width)."""


class Pairs(Dataset):
    """The rows of a table that may have a good image, `images.rows`, as examples.

    Args:
        augmentation: changes the texts of batches that have seeds; None: none.
        texts: name → vectors of the texts. `text_pooler_output`, the output of a locked text tower, replaces the
            tokens.
    """

    def __init__(
        self,
        table: PairTable,
        images: ImageSource,
        augmentation: TextAugmentation | None = None,
        texts: Mapping[str, TextColumn] | None = None,
    ):
        self.table, self.images, self.augmentation, self.texts = table, images, augmentation, dict(texts or {})

    def replaced(self, **parts) -> "Pairs":
        """The same pairs with some arguments replaced; `texts` are added to those that there are."""
        texts = {**self.texts, **parts.pop("texts", {})}
        return Pairs(self.table, **{"images": self.images, "augmentation": self.augmentation, "texts": texts, **parts})

    @property
    def bytes_per_pair(self) -> int:
        """Size of the vectors and pixels of a pair."""
        return self.images.bytes_per_image + sum(column.bytes_per_row for column in self.texts.values())

    def __len__(self) -> int:
        return len(self.images.rows)

    def __getitem__(self, index: int) -> dict:
        """The example at `index`, in the form that `__getitems__` returns."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | SeededIndices) -> dict:
        """The n good pairs at some indices, column by column. A DataLoader calls this once per batch.

        Returns:
            rows (n,) of the table; ids (n, 2) int64, text_ids and image_ids of the rows; tokens of all texts,
            concatenated, and their lengths (n,), unless text_pooler_output replaces them; texts, the columns of that
            name; images, the model's inputs from the image source, {} if n is 0; and bad_images, row → reason, of the
            pairs that are left out because they have no good image.
        """
        generator = epoch_seed = None
        if isinstance(indices, SeededIndices):
            # The worker's own generator would give other numbers after a resume.
            generator, epoch_seed = torch.Generator().manual_seed(indices.seed), indices.epoch_seed
            indices = indices.indices
        rows, images, bad_images = self.images.load(self.images.rows[indices], generator)
        texts = {name: column[rows] for name, column in self.texts.items()}
        example = {"rows": rows, "ids": self.table.ids(rows), "texts": texts, "images": images}
        example["bad_images"] = bad_images
        if "text_pooler_output" in texts:
            return example
        tokens, lengths = self.table.tokens(rows)
        if self.augmentation and epoch_seed:
            tokens, lengths = self.augmentation(rows, tokens, lengths, epoch_seed)
        return {**example, "tokens": tokens, "lengths": lengths}

    def some_rows(self, count: int = 100) -> np.ndarray:
        """Up to `count` of the rows with an image, from all over the table, always the same."""
        chosen = np.random.default_rng(0).choice(len(self), min(count, len(self)), replace=False)
        return self.images.rows[np.sort(chosen)]

    def require_an_image(self) -> None:
        """Raise ValueError if no image of the table can be read. Stops at the first good one."""
        first = None
        for index in range(len(self)):
            loaded = self.images.load(self.images.rows[[index]])
            if not loaded.bad:
                return
            first = first or next(iter(loaded.bad.values()))
        folder = self.table.image_path
        hint = f" Check image_path {folder}; the column `filename` is relative to it." if folder else ""
        raise ValueError(
            f"None of the {len(self)} images of {self.table.file} can be read (the first: {first}).{hint}"
        )


def PairDataset(
    file: str | Sequence[str],
    image_path: str | None,
    processor: CLIPProcessor,
    max_seq_length: int,
    transform: ImageTransform | None = None,
    augmentation: TextAugmentation | None = None,
    **reading,
) -> Pairs:
    """The pairs of some files, whose images are decoded when they are asked for.

    Args:
        file, image_path: see `component.pairs.sources.read_pair_files`.
        processor: its tokenizer turns the texts into tokens, its image processor defines the pixel_values.
        max_seq_length: tokens per text including [CLS] and [SEP]; longer texts are cut and counted.
        transform: makes the pixels; None: as the image processor does.
        augmentation: see `Pairs`.
        reading: `columns`, `folder`, `work` and `keep_list`, see `load_pair_table`, which also says what is raised.
    """
    table = load_pair_table(file, image_path, ChunkEncoder(processor.tokenizer, max_seq_length), **reading)
    images = DecodedImages(table, transform or ImageTransform(processor.image_processor))
    return Pairs(table, images, augmentation)
