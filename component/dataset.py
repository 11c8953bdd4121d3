"""Rows of the pair table → examples."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import CLIPProcessor

from component.image.load import BadImageError
from component.image.transform import ImageTransform
from component.pairs.caption import is_caption
from component.pairs.ragged import RaggedArray
from component.pairs.shards import IndexShards, Shard, index_shards
from component.pairs.sources import ImageFolder, read_pair_files


class PairDataset(Dataset):
    """The image-text pairs of one or more files: texts are tokenized once, pictures are decoded when asked for.

    Holds about 110 bytes a row in flat arrays (1.4 million rows: 0.15 GB), which worker processes share.

    Args:
        file: one name or several, of CSV or Parquet tables with the columns `text` and `filename`, or of shards; see
            `read_pair_files`.
        image_path: folder that the file names are relative to; may be None for shards.
        processor: its tokenizer cuts the texts to tokens, its image processor says what pixel_values are.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are cut and counted.
        transform: makes the pixel_values; None: as the image processor does.
        index_shards: how shards are indexed, see `read_shards`.

    Attributes:
        file: what messages call the whole.
        num_empty_texts: rows left out because their text is empty.
        num_long_texts: rows whose text was cut.
        bad_images: (row, reason) of the pairs that `use_features` left out.
        text_ids, image_ids: (rows,) uint64; equal ids mean equal captions, equal file names.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or there is no row with a text.
        ImportError: what reads Parquet is not installed.
    """

    def __init__(
        self,
        file: str | Sequence[str],
        image_path: str | None,
        processor: CLIPProcessor,
        max_seq_length: int,
        transform: ImageTransform | None = None,
        index_shards: IndexShards = index_shards,
    ):
        files = [file] if isinstance(file, str) else file
        self.file = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        self.image_path = image_path
        self.transform = transform or ImageTransform(processor.image_processor)
        self.num_empty_texts = self.num_long_texts = 0
        # A Chinese BERT has some 21,000 tokens: two bytes hold any of them.
        self._input_ids = RaggedArray("H" if len(processor.tokenizer) <= 2**16 else "i")
        self._locators = RaggedArray("B")
        # Where the pictures lie from which row on.
        self._places: list[ImageFolder | Shard] = []
        self._first_rows: list[int] = []
        text_ids, image_ids = [], []
        for place, chunk in read_pair_files(file, image_path, index_shards):
            texts = chunk["text"].str.strip()
            filled = np.fromiter(map(is_caption, texts), bool, len(texts))
            self.num_empty_texts += int((~filled).sum())
            if not filled.any():
                continue
            texts, locators = texts[filled], chunk["filename"][filled].tolist()
            self._places.append(place)
            self._first_rows.append(len(self._locators))
            for input_ids in self._tokenize(texts.tolist(), processor.tokenizer, max_seq_length):
                self._input_ids.append(input_ids)
            for locator in locators:
                self._locators.append(locator.encode())
            text_ids.append(pd.util.hash_array(texts.to_numpy(object)))
            image_ids.append(pd.util.hash_array(np.array([place.filename(locator) for locator in locators], object)))
        if not text_ids:
            raise ValueError(f"{self.file} has no row with a text ({self.num_empty_texts} rows with an empty one).")
        self.text_ids, self.image_ids = np.concatenate(text_ids), np.concatenate(image_ids)
        self.bad_images: list[tuple[int, str]] = []
        self._rows, self._features = np.arange(len(self.text_ids)), None
        # Shared with worker processes that live longer than an epoch.
        self._seed = torch.zeros(2, dtype=torch.long).share_memory_()

    def use_features(self, cache, positions: np.ndarray) -> None:
        """Take the tower's output of each picture from a `FeatureCache`, and leave out the rows that have none.

        Args:
            cache: `cache[positions[rows]]` are the features, (n, vision_hidden), of the rows' pictures.
            positions: one for each row of the table.
        """
        good = cache.good(positions)
        self._features, self._positions, self._rows = cache, positions, np.flatnonzero(good)
        overflow = "the vision tower gives NaN for it"
        self.bad_images = []
        for row in np.flatnonzero(~good).tolist():
            _, _, bad_images = self.load_images([row])
            self.bad_images += bad_images or [(row, f"{self.filename(row)}: {overflow}")]

    def _tokenize(self, texts: list[str], tokenizer, max_seq_length: int):
        # Cut here: what the tokenizer is asked to cut, it writes into every tokenizer.json that training saves.
        options = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        for tokens in tokenizer(texts, **options, verbose=False)["input_ids"]:
            self.num_long_texts += len(tokens) > max_seq_length - 2
            yield [tokenizer.cls_token_id, *tokens[: max_seq_length - 2], tokenizer.sep_token_id]

    def seed(self, seed: int, epoch: int) -> None:
        """Let random pieces and mirroring depend on these two numbers and the batch alone.

        Otherwise a resumed training would draw others than one that was never stopped: the random numbers of a worker
        process are in no checkpoint.
        """
        self._seed[:] = torch.tensor([seed, epoch])

    def __len__(self) -> int:
        return len(self._rows)

    def filename(self, row: int) -> str:
        place, locator = self._image(row)
        return place.filename(locator)

    def image_identity(self, row: int) -> str | None:
        """A text that changes when the row's picture does; None where there is no such file."""
        place, locator = self._image(row)
        return place.identity(locator)

    def _image(self, row: int) -> tuple[ImageFolder | Shard, str]:
        return self._places[bisect_right(self._first_rows, row) - 1], self._locators[row].tobytes().decode()

    def load_images(self, rows: Sequence[int]) -> tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]:
        """Read the pictures of some rows.

        Returns:
            The rows with a good picture; their pixel_values (good, 3, H, W), or None where there is none; and
            (row, reason) of the others.
        """
        good, images, bad = [], [], []
        for row in rows:
            place, locator = self._image(row)
            try:
                images.append(self.transform.read(place.open(locator)))
                good.append(row)
            except BadImageError as error:
                bad.append((row, f"{place.filename(locator)}: {error}"))
        return good, self.transform.pixel_values(images) if good else None, bad

    def __getitem__(self, index: int) -> dict:
        """The example at `index`, in the form that `__getitems__` has for several."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict:
        """The n good pairs at some indices, column by column; this is what a DataLoader calls, once for a batch.

        They come sorted by the length of their texts, for `PairCollator`; a contrastive batch has no order.

        Returns:
            rows (n,) in the table; ids (n, 2) int64, text_ids and image_ids of the rows; tokens, of all texts one
            after the other, and their lengths (n,); pixel_values (n, 3, H, W), or from the cache vision_pooler_output
            (n, vision_hidden), or neither if n is 0; and bad_images, (row, reason) of the pairs without a picture,
            which are left out.
        """
        rows, bad_images, images = self._rows[indices], [], {}
        rows = rows[self._input_ids.lengths(rows).argsort(kind="stable")]
        if self._features is not None:
            images["vision_pooler_output"] = self._features[self._positions[rows]]
        else:
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(hash((*self._seed.tolist(), *indices[:1])))
                good, pixel_values, bad_images = self.load_images(rows.tolist())
            rows = np.array(good, np.int64)
            if good:
                images["pixel_values"] = pixel_values
        tokens, lengths = self._input_ids.gather(rows)
        ids = np.stack([self.text_ids[rows], self.image_ids[rows]], axis=1).view(np.int64)
        return {"rows": rows, "ids": ids, "tokens": tokens, "lengths": lengths, "bad_images": bad_images, **images}

    @property
    def share_of_repeated_captions(self) -> float:
        """Share of rows whose caption already occurred: in one batch, each repeat is a false negative."""
        return 1 - len(np.unique(self.text_ids)) / len(self.text_ids)

    def require_an_image(self) -> None:
        """Raise ValueError when not one picture of the table can be read; stops at the first good one."""
        first = None
        for row in self._rows.tolist():
            _, _, bad_images = self.load_images([row])
            if not bad_images:
                return
            first = first or bad_images[0][1]
        hint = f" Check image_path {self.image_path}; the column `filename` is relative to it."
        raise ValueError(
            f"None of the {len(self)} pictures of {self.file} can be read (the first: {first})."
            + (hint if self.image_path else "")
        )
