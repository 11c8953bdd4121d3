"""Rows of the pair table → examples."""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import CLIPProcessor

from component.image import BadImageError, load_image
from component.pairs import image_file, read_pairs
from component.ragged import RaggedArray


class PairDataset(Dataset):
    """The image-text pairs of one CSV: texts are tokenized once, pictures are decoded when asked for.

    Holds about 150 bytes a row in flat arrays (1.4 million rows: 0.2 GB), which worker processes share.

    Args:
        file: CSV with the columns `text` and `filename`.
        image_path: folder that the file names are relative to.
        processor: its tokenizer cuts the texts to tokens, its image processor makes the pixel_values.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are cut and counted.

    Attributes:
        num_empty_texts: rows left out because their text is empty.
        num_long_texts: rows whose text was cut.
        text_ids, image_ids: (rows,) uint64; equal ids mean equal captions, equal file names.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or has no row with a text.
    """

    def __init__(self, file: str, image_path: str, processor: CLIPProcessor, max_seq_length: int):
        self.file, self.image_path, self.image_processor = file, image_path, processor.image_processor
        self.num_empty_texts = self.num_long_texts = 0
        self._input_ids, self._filenames = RaggedArray("i"), RaggedArray("B")
        text_ids, image_ids = [], []
        for chunk in read_pairs(file, only_required=True):
            texts = chunk["text"].str.strip()
            filled = (texts != "").to_numpy()
            self.num_empty_texts += int((~filled).sum())
            texts, filenames = texts[filled], chunk["filename"][filled]
            for input_ids in self._tokenize(texts.tolist(), processor.tokenizer, max_seq_length):
                self._input_ids.append(input_ids)
            for filename in filenames:
                self._filenames.append(filename.encode())
            text_ids.append(pd.util.hash_array(texts.to_numpy(object)))
            image_ids.append(pd.util.hash_array(filenames.to_numpy(object)))
        if not len(self):
            raise ValueError(f"{file} has no row with a text ({self.num_empty_texts} rows with an empty one).")
        self.text_ids, self.image_ids = np.concatenate(text_ids), np.concatenate(image_ids)

    def _tokenize(self, texts: list[str], tokenizer, max_seq_length: int):
        if not texts:
            return
        # Cut here: what the tokenizer is asked to cut, it writes into every tokenizer.json that training saves.
        options = dict(add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        for tokens in tokenizer(texts, **options, verbose=False)["input_ids"]:
            self.num_long_texts += len(tokens) > max_seq_length - 2
            yield [tokenizer.cls_token_id, *tokens[: max_seq_length - 2], tokenizer.sep_token_id]

    def __len__(self) -> int:
        return len(self._filenames)

    def filename(self, row: int) -> str:
        return self._filenames[row].tobytes().decode()

    def pixel_values(self, row: int) -> torch.Tensor:
        """(3, H, W) of the row's picture. Raises BadImageError where there is none to be had."""
        try:
            path = image_file(self.image_path, self.filename(row))
        except ValueError as error:
            raise BadImageError(str(error)) from None
        return self.image_processor(load_image(path), return_tensors="pt")["pixel_values"][0]

    def __getitem__(self, row: int) -> dict:
        """The example of one row: row, input_ids (T,), and pixel_values (3, H, W) or the reason why there are none."""
        example = {"row": row, "input_ids": self._input_ids[row]}
        try:
            example["pixel_values"] = self.pixel_values(row)
        except BadImageError as error:
            example["bad_image"] = f"{self.filename(row)}: {error}"
        return example

    @property
    def share_of_repeated_captions(self) -> float:
        """Share of rows whose caption already occurred: in one batch, each repeat is a false negative."""
        return 1 - len(np.unique(self.text_ids)) / len(self)

    def require_a_picture(self) -> None:
        """Raise ValueError when not one picture of the table can be read; stops at the first good one."""
        reasons = []
        for row in range(len(self)):
            try:
                self.pixel_values(row)
                return
            except BadImageError as error:
                reasons = reasons or [f"{self.filename(row)}: {error}"]
        raise ValueError(
            f"None of the {len(self)} pictures of {self.file} can be read under image_path {self.image_path} "
            f"(the first: {reasons[0]}). Check image_path; the column `filename` is relative to it."
        )
