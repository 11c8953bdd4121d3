"""The pairs of one data set: texts as tokens, and where each image is."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from component.ground.file_state import MISSING, FileState
from component.pairs.caption import is_caption
from component.pairs.file_content import FileContent
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.image_stores import STORES, ImageFolder, ImageStore
from component.pairs.ragged import RaggedArray
from component.pairs.text_encoder import TextEncoder

KEY_FORMAT = 3  # of `PairTable.image_keys`


class PairTable:
    """The image-text pairs of one or more files, each text tokenized once.

    About 120 bytes per row in flat arrays, in memory or mapped from files; see `load_pair_table`.

    Args:
        arrays: what `write_pairs` returns.
        places: path of a file when it was indexed → its path now, and the state in which this process found it at
            its start. Images of shards cannot be read without them.

    Attributes:
        path, version: of the folder that it is mapped from, see `FlatArrays`; None in memory.
        file: what messages call the whole.
        image_path: folder that the file names are relative to; may be None for shards.
        num_empty_texts: rows left out because their text is empty.
        num_long_texts: rows whose text was cut.
        highest_token_id: the highest of all texts.
        share_of_unknown: share of the tokens that are [UNK], because the vocabulary does not have them.
        share_of_repeated_captions: share of the rows; in one batch, each repeat is a false negative.
        text_ids, image_ids: (rows,) uint64; equal ids mean equal captions, equal file names.
        first_rows: (images,) int64, ascending: the first row of each image.
        image_numbers: (rows,) index into `first_rows` of each row's image.
    """

    def __init__(self, arrays: FlatArrays, places: Mapping[str, tuple[str, FileState | None]] | None = None):
        self._arrays, self.path, self.version = arrays, arrays.path, arrays.version
        facts, places = dict(arrays.facts), places or {}
        self._stores = [STORES[kind](*places.get(path, (path,)), *more) for kind, path, *more in facts["stores"]]
        # A worker process needs no places of files that are not stores.
        self._places = {path: places[path] for _, path, *_ in facts["stores"] if path in places}
        contents = dict(zip(facts["files"], facts["contents"], strict=True))
        indexed = [(contents.get(path), path) for _, path, *_ in facts["stores"]]
        # Keys depend on the content and the name of a shard, not on where and when it was copied.
        self._store_states = np.array([FileContent(*content).number if content else 0 for content, _ in indexed])
        names = [os.path.basename(path) if content else os.path.abspath(path) for content, path in indexed]
        self._store_keys = pd.util.hash_array(np.array(names, object))
        self._starts = facts["starts"]  # the row from which on the images are in each store
        self.file, self.image_path = facts["file"], facts["image_path"]
        self.num_empty_texts, self.num_long_texts = facts["num_empty_texts"], facts["num_long_texts"]
        self.highest_token_id, self.share_of_unknown = facts["highest_token_id"], facts["share_of_unknown"]
        self.share_of_repeated_captions = facts["share_of_repeated_captions"]
        self._tokens = RaggedArray(arrays["tokens"], arrays["token_offsets"])
        self._locators = RaggedArray(arrays["locators"], arrays["locator_offsets"])
        self.text_ids, self.image_ids = arrays["text_ids"], arrays["image_ids"]
        self.first_rows, self.image_numbers = arrays["first_rows"], arrays["image_numbers"]

    def __reduce__(self):
        return PairTable, (self._arrays, self._places)

    def __len__(self) -> int:
        return len(self.text_ids)

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → the tokens of their texts, concatenated, and their lengths (n,)."""
        self._arrays.require_whole()
        return self._tokens.gather(rows)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, 2) int64, their text_ids and image_ids."""
        return np.stack([self.text_ids[rows], self.image_ids[rows]], axis=1).view(np.int64)

    def image(self, row: int) -> tuple[ImageStore, str]:
        """The store that holds the row's image, and its locator there."""
        return self._stores[bisect_right(self._starts, row) - 1], self._locators[row].tobytes().decode()

    def filename(self, row: int) -> str:
        store, locator = self.image(row)
        return store.filename(locator)

    def image_states(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64, `FileState.number` of each image's file, or MISSING; of an image in a shard,
        `FileContent.number` of the shard.

        Raises:
            OSError: the disk does not answer.
        """
        numbers = self._store_numbers(rows)
        states = self._store_states[numbers]
        for number, store in enumerate(self._stores):
            if isinstance(store, ImageFolder):
                inside = np.flatnonzero(numbers == number)
                states[inside] = list(map(store.state_of, self._locators.texts(rows[inside])))
        return states

    def image_keys(self, rows: np.ndarray, states: np.ndarray) -> np.ndarray:
        """(n,) rows and their `image_states` → (n,) int64 keys, MISSING where there is no file.

        An image that changes gets another key.
        """
        columns = {
            "store": self._store_keys[self._store_numbers(rows)],
            "locator": pd.util.hash_array(np.array(self._locators.texts(rows), object), categorize=False),
            "state": states,
        }
        keys = pd.util.hash_pandas_object(pd.DataFrame(columns), index=False).to_numpy() >> np.uint64(1)
        return np.where(states == MISSING, MISSING, keys.view(np.int64))

    def _store_numbers(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


class EncodedChunk(NamedTuple):
    """The pairs of a frame that have a text: n rows, whose images are in one store."""

    store: ImageStore
    tokens: np.ndarray
    token_lengths: np.ndarray  # (n,)
    locators: np.ndarray  # uint8
    locator_lengths: np.ndarray  # (n,)
    text_ids: np.ndarray  # (n,)
    image_ids: np.ndarray  # (n,)
    num_empty_texts: int
    num_long_texts: int
    num_unknown: int


class ChunkEncoder:
    """Turns texts and file names into the arrays of a table.

    Args:
        tokenizer: of the BERT.
        max_seq_length: tokens per text including [CLS] and [SEP]; longer texts are cut and counted.
    """

    def __init__(self, tokenizer, max_seq_length: int):
        self._encode_texts = TextEncoder(tokenizer, max_seq_length)
        self.identity = self._encode_texts.identity

    def __call__(self, chunk: tuple[ImageStore, pd.DataFrame]) -> EncodedChunk:
        store, rows = chunk
        texts = rows["text"].str.strip()
        filled = np.fromiter(map(is_caption, texts.tolist()), bool, len(texts))
        texts, locators = texts[filled], rows["filename"][filled].tolist()
        encoded = self._encode_texts(texts.tolist())
        contents = [locator.encode() for locator in locators]
        names = np.array([store.filename(locator) for locator in locators], object)
        return EncodedChunk(
            store,
            encoded.tokens,
            encoded.lengths,
            np.frombuffer(b"".join(contents), np.uint8),
            np.fromiter(map(len, contents), np.int64, len(contents)),
            pd.util.hash_array(texts.to_numpy(object)),
            pd.util.hash_array(names),
            int((~filled).sum()),
            encoded.num_long,
            encoded.num_unknown,
        )


def write_pairs(
    writer: ArrayWriter,
    chunks: Iterable[EncodedChunk],
    file: str,
    image_path: str | None,
    contents: Mapping[str, FileContent | None],
    **facts: Any,
) -> FlatArrays | None:
    """Write the arrays of a table from its chunks, in order.

    Args:
        contents: of the files that the pairs are in; known at the latest when the chunks have been read.

    Raises:
        OSError: the writer cannot write.
    """
    counts = dict.fromkeys(("num_empty_texts", "num_long_texts", "num_unknown"), 0)
    stores, starts, ends, highest = [], [], {"token": 0, "locator": 0}, 0
    text_ids, image_ids = [], []
    for name in ends:
        writer.append(f"{name}_offsets", np.zeros(1, np.int64))
    for chunk in chunks:
        for name in counts:
            counts[name] += getattr(chunk, name)
        if not len(chunk.text_ids):
            continue
        if not stores or chunk.store != stores[-1]:
            stores.append(chunk.store)
            starts.append(sum(map(len, text_ids)))
        highest = max(highest, int(chunk.tokens.max()))
        for name in ends:
            offsets = ends[name] + getattr(chunk, f"{name}_lengths").cumsum()
            writer.append(f"{name}_offsets", offsets)
            writer.append(f"{name}s", getattr(chunk, f"{name}s"))
            ends[name] = int(offsets[-1])
        text_ids.append(chunk.text_ids)
        image_ids.append(chunk.image_ids)
    text_ids, image_ids = np.concatenate(text_ids), np.concatenate(image_ids)
    first_rows, image_numbers = _first_and_number(image_ids)
    writer.append("text_ids", text_ids)
    writer.append("image_ids", image_ids)
    writer.append("first_rows", first_rows)
    writer.append("image_numbers", image_numbers)
    return writer.finish(
        {
            **facts,
            "file": file,
            "image_path": image_path,
            "files": list(contents),
            "contents": list(contents.values()),
            # Without the state in which the indexing process found the file: another one may have a copy.
            "stores": [(type(store).__name__, store.path, *astuple(store)[2:]) for store in stores],
            "starts": starts,
            "num_empty_texts": counts["num_empty_texts"],
            "num_long_texts": counts["num_long_texts"],
            "highest_token_id": highest,
            "share_of_unknown": counts["num_unknown"] / max(ends["token"] - 2 * len(text_ids), 1),
            "share_of_repeated_captions": 1 - len(np.unique(text_ids)) / len(text_ids),
        }
    )


def _first_and_number(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct id, ascending, and for each row the index of its own id among these."""
    _, first, number = np.unique(ids, return_index=True, return_inverse=True)
    order = first.argsort()
    renumbered = np.empty(len(order), np.int32 if len(order) < 2**31 else np.int64)
    renumbered[order] = np.arange(len(order))
    return first[order], renumbered[number]
