"""The pairs of one data set: texts as tokens, and where each image lies."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from component.pairs.caption import is_caption
from component.pairs.ragged import RaggedArray
from component.pairs.shards import IndexShards, Shard, index_shards
from component.pairs.sources import ImageFolder, read_pair_files


class PairTable:
    """The image-text pairs of one or more files, each text tokenized once.

    Holds about 110 bytes a row in flat arrays (1.4 million rows: 0.15 GB), which worker processes share.

    Args:
        file: one name or several, of CSV or Parquet tables with the columns `text` and `filename`, or of shards; see
            `read_pair_files`.
        image_path: folder that the file names are relative to; may be None for shards.
        tokenizer: of the BERT.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are cut and counted.
        index_shards: how shards are indexed, see `read_shards`.

    Attributes:
        file: what messages call the whole.
        num_empty_texts: rows left out because their text is empty.
        num_long_texts: rows whose text was cut.
        highest_token_id: of all texts.
        share_of_unknown: of the texts' tokens, those that the vocabulary does not have ([UNK]).
        text_ids, image_ids: (rows,) uint64; equal ids mean equal captions, equal file names.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or there is no row with a text.
        ImportError: what reads Parquet is not installed.
    """

    def __init__(
        self,
        file: str | Sequence[str],
        image_path: str | None,
        tokenizer,
        max_seq_length: int,
        index_shards: IndexShards = index_shards,
    ):
        files = [file] if isinstance(file, str) else file
        self.file = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        self.image_path = image_path
        self.num_empty_texts = self.num_long_texts = self.highest_token_id = 0
        num_tokens = num_unknown = 0
        # A Chinese BERT has some 21,000 tokens: two bytes hold any of them.
        self._input_ids = RaggedArray("H" if len(tokenizer) <= 2**16 else "i")
        self._locators = RaggedArray("B")
        # Where the images lie from which row on.
        self._places: list[ImageFolder | Shard] = []
        self._first_rows: list[int] = []
        text_ids, image_ids = [], []
        for place, chunk in read_pair_files(file, image_path, index_shards):
            texts = chunk["text"].str.strip()
            filled = np.fromiter(map(is_caption, texts.tolist()), bool, len(texts))
            self.num_empty_texts += int((~filled).sum())
            if not filled.any():
                continue
            texts, locators = texts[filled], chunk["filename"][filled].tolist()
            self._places.append(place)
            self._first_rows.append(len(self._locators))
            for input_ids in self._tokenize(texts.tolist(), tokenizer, max_seq_length):
                self._input_ids.append(input_ids)
                self.highest_token_id = max(self.highest_token_id, *input_ids)
                num_tokens += len(input_ids) - 2
                num_unknown += input_ids.count(tokenizer.unk_token_id)
            for locator in locators:
                self._locators.append(locator.encode())
            text_ids.append(pd.util.hash_array(texts.to_numpy(object)))
            image_ids.append(pd.util.hash_array(np.array([place.filename(locator) for locator in locators], object)))
        if not text_ids:
            raise ValueError(f"{self.file} has no row with a text ({self.num_empty_texts} rows with an empty one).")
        self.share_of_unknown = num_unknown / max(num_tokens, 1)
        self.text_ids, self.image_ids = np.concatenate(text_ids), np.concatenate(image_ids)

    def _tokenize(self, texts: list[str], tokenizer, max_seq_length: int) -> Iterator[list[int]]:
        # Cut here: what the tokenizer is asked to cut, it writes into every tokenizer.json that training saves.
        options = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        for tokens in tokenizer(texts, **options, verbose=False)["input_ids"]:
            self.num_long_texts += len(tokens) > max_seq_length - 2
            yield [tokenizer.cls_token_id, *tokens[: max_seq_length - 2], tokenizer.sep_token_id]

    def __len__(self) -> int:
        return len(self.text_ids)

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → the tokens of their texts one after the other, and the lengths of these, (n,)."""
        return self._input_ids.gather(rows)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, 2) int64, their text_ids and image_ids."""
        return np.stack([self.text_ids[rows], self.image_ids[rows]], axis=1).view(np.int64)

    def image(self, row: int) -> tuple[ImageFolder | Shard, str]:
        """The place where the row's image lies, and its locator there."""
        return self._places[bisect_right(self._first_rows, row) - 1], self._locators[row].tobytes().decode()

    def filename(self, row: int) -> str:
        place, locator = self.image(row)
        return place.filename(locator)

    def image_identity(self, row: int) -> str | None:
        """A text that changes when the row's image does; None where there is no such file."""
        place, locator = self.image(row)
        return place.identity(locator)

    @property
    def share_of_repeated_captions(self) -> float:
        """Share of rows whose caption already occurred: in one batch, each repeat is a false negative."""
        return 1 - len(np.unique(self.text_ids)) / len(self)
