"""The pairs of one data set: texts as tokens, and where each image lies."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from component.ground.file_state import MISSING, FileState
from component.pairs.caption import is_caption
from component.pairs.flat_arrays import ArrayWriter, FlatArrays
from component.pairs.ragged import RaggedArray
from component.pairs.shards import Shard
from component.pairs.sources import ImageFolder, Place
from component.pairs.tsv_images import ImageTsv

KEY_FORMAT = 3  # of `PairTable.image_keys`
PLACES = {kind.__name__: kind for kind in (ImageFolder, Shard, ImageTsv)}


class PairTable:
    """The image-text pairs of one or more files, each text tokenized once.

    About 120 bytes a row in flat arrays, in memory or mapped from files; see `load_pair_table`.

    Args:
        arrays: what `write_pairs` made.
        states: path → state of the shards as this process found them at its start; those of the process that indexed
            them by default. Another machine may have a copy of a shard, whose times and inode differ.

    Attributes:
        path, version: of the folder that it is mapped from, see `FlatArrays`; None in memory.
        file: what messages call the whole.
        image_path: folder that the file names are relative to; may be None for shards.
        num_empty_texts: rows left out because their text is empty.
        num_long_texts: rows whose text was cut.
        highest_token_id: of all texts.
        share_of_unknown: of the texts' tokens, those that the vocabulary does not have ([UNK]).
        share_of_repeated_captions: of the rows; in one batch, each repeat is a false negative.
        text_ids, image_ids: (rows,) uint64; equal ids mean equal captions, equal file names.
        first_rows: (images,) int64, rising: the first row of each image.
        image_numbers: (rows,) the place in `first_rows` of each row's image.
    """

    def __init__(self, arrays: FlatArrays, states: Mapping[str, FileState | None] | None = None):
        self._arrays, self.path, self.version = arrays, arrays.path, arrays.version
        facts = dict(arrays.facts)
        places = [PLACES[kind](path, *(FileState(*state) for state in made)) for kind, path, *made in facts["places"]]
        # Keys contain the states that the indexing process saw, so that they are the same in all processes.
        self._place_states = np.array([place.state.number if isinstance(place, Shard) else 0 for place in places])
        self._place_keys = pd.util.hash_array(np.array([os.path.abspath(place.path) for place in places], object))
        # A worker process needs no states of files that are not shards.
        self._local = {place.path: states[place.path] for place in places if states and states.get(place.path)}
        self._places = [
            replace(place, state=self._local[place.path]) if place.path in self._local else place for place in places
        ]
        self._starts = facts["starts"]  # from which row on the images lie in each place
        self.file, self.image_path = facts["file"], facts["image_path"]
        self.num_empty_texts, self.num_long_texts = facts["num_empty_texts"], facts["num_long_texts"]
        self.highest_token_id, self.share_of_unknown = facts["highest_token_id"], facts["share_of_unknown"]
        self.share_of_repeated_captions = facts["share_of_repeated_captions"]
        self._tokens = RaggedArray(arrays["tokens"], arrays["token_offsets"])
        self._locators = RaggedArray(arrays["locators"], arrays["locator_offsets"])
        self.text_ids, self.image_ids = arrays["text_ids"], arrays["image_ids"]
        self.first_rows, self.image_numbers = arrays["first_rows"], arrays["image_numbers"]

    def __reduce__(self):
        return PairTable, (self._arrays, self._local)

    def __len__(self) -> int:
        return len(self.text_ids)

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → the tokens of their texts one after the other, and the lengths of these, (n,)."""
        self._arrays.require_whole()
        return self._tokens.gather(rows)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, 2) int64, their text_ids and image_ids."""
        return np.stack([self.text_ids[rows], self.image_ids[rows]], axis=1).view(np.int64)

    def image(self, row: int) -> tuple[Place, str]:
        """The place where the row's image lies, and its locator there."""
        return self._places[bisect_right(self._starts, row) - 1], self._locators[row].tobytes().decode()

    def filename(self, row: int) -> str:
        place, locator = self.image(row)
        return place.filename(locator)

    def image_states(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64, `FileState.number` of the file or the shard that each image is in, or MISSING.

        Raises:
            OSError: the disk does not answer.
        """
        places = self._places_of(rows)
        states = self._place_states[places]
        for number, place in enumerate(self._places):
            if isinstance(place, ImageFolder):
                inside = np.flatnonzero(places == number)
                states[inside] = list(map(place.state, self._locators.texts(rows[inside])))
        return states

    def image_keys(self, rows: np.ndarray, states: np.ndarray) -> np.ndarray:
        """(n,) rows and their `image_states` → (n,) int64 keys, which differ when an image changes; MISSING stays."""
        what = {
            "folder_or_shard": self._place_keys[self._places_of(rows)],
            "locator": pd.util.hash_array(np.array(self._locators.texts(rows), object), categorize=False),
            "state": states,
        }
        keys = pd.util.hash_pandas_object(pd.DataFrame(what), index=False).to_numpy() >> np.uint64(1)
        return np.where(states == MISSING, MISSING, keys.view(np.int64))

    def _places_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


class EncodedChunk(NamedTuple):
    """The pairs of a chunk that have a text: n rows, all in one place."""

    place: Place
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
    """Texts and file names → the arrays of a table.

    Args:
        tokenizer: of the BERT.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are cut and counted.
    """

    def __init__(self, tokenizer, max_seq_length: int):
        # A copy: what a tokenizer is asked to cut, it writes into every tokenizer.json that training saves.
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
        # A Chinese BERT has some 21,000 tokens: two bytes hold any of them.
        self._dtype = np.dtype("uint16" if len(tokenizer) <= 2**16 else "int32")
        self._cls, self._sep, self._unknown = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
        self._room = max_seq_length - 2

    def __call__(self, chunk: tuple[Place, pd.DataFrame]) -> EncodedChunk:
        place, rows = chunk
        texts = rows["text"].str.strip()
        filled = np.fromiter(map(is_caption, texts.tolist()), bool, len(texts))
        texts, locators = texts[filled], rows["filename"][filled].tolist()
        tokens, token_lengths, num_long, num_unknown = self._tokenize(texts.tolist())
        contents = [locator.encode() for locator in locators]
        names = np.array([place.filename(locator) for locator in locators], object)
        return EncodedChunk(
            place,
            tokens,
            token_lengths,
            np.frombuffer(b"".join(contents), np.uint8),
            np.fromiter(map(len, contents), np.int64, len(contents)),
            pd.util.hash_array(texts.to_numpy(object)),
            pd.util.hash_array(names),
            int((~filled).sum()),
            num_long,
            num_unknown,
        )

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int, int]:
        """[CLS] tokens [SEP] of all texts, their lengths, how many texts were cut, and how many tokens are [UNK]."""
        whole = [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, whole), np.int64, len(whole))
        num_long = int((lengths > self._room).sum())
        lengths = lengths.clip(max=self._room) + 2
        ends = lengths.cumsum()
        tokens = np.empty(lengths.sum(), self._dtype)
        inside = np.ones(len(tokens), bool)
        for special, places in ((self._cls, ends - lengths), (self._sep, ends - 1)):
            tokens[places], inside[places] = special, False
        kept = chain.from_iterable(ids[: self._room] for ids in whole)
        tokens[inside] = np.fromiter(kept, self._dtype, len(tokens) - 2 * len(whole))
        return tokens, lengths, num_long, int((tokens[inside] == self._unknown).sum())


def write_pairs(
    writer: ArrayWriter, chunks: Iterable[EncodedChunk], file: str, image_path: str | None, **facts: Any
) -> FlatArrays | None:
    """The arrays of a table, from its chunks in order. Raises OSError where the writer cannot write."""
    counts = dict.fromkeys(("num_empty_texts", "num_long_texts", "num_unknown"), 0)
    places, starts, ends, highest = [], [], {"token": 0, "locator": 0}, 0
    text_ids, image_ids = [], []
    for name in ends:
        writer.append(f"{name}_offsets", np.zeros(1, np.int64))
    for chunk in chunks:
        for name in counts:
            counts[name] += getattr(chunk, name)
        if not len(chunk.text_ids):
            continue
        if not places or chunk.place != places[-1]:
            places.append(chunk.place)
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
            "places": [(type(place).__name__, *astuple(place)) for place in places],
            "starts": starts,
            "num_empty_texts": counts["num_empty_texts"],
            "num_long_texts": counts["num_long_texts"],
            "highest_token_id": highest,
            "share_of_unknown": counts["num_unknown"] / max(ends["token"] - 2 * len(text_ids), 1),
            "share_of_repeated_captions": 1 - len(np.unique(text_ids)) / len(text_ids),
        }
    )


def _first_and_number(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each different id, rising, and for each row which of these is its own."""
    _, first, number = np.unique(ids, return_index=True, return_inverse=True)
    order = first.argsort()
    renumbered = np.empty(len(order), np.int32 if len(order) < 2**31 else np.int64)
    renumbered[order] = np.arange(len(order))
    return first[order], renumbered[number]
