"""Statistics of a table: every text and every image is read once.

N pairs. Pairs with the same file name share one image.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import DataLoader

from component.image.batch import ImageBatch
from component.pairs.image_source import DecodedImages
from component.pairs.pair_table import PairTable

ROWS_AT_ONCE = 100_000
MOST_REPEATED = 10  # texts that are named


@dataclass(frozen=True)
class Texts:
    """The texts of a table that was read without cutting them.

    Attributes:
        lengths: (N,) tokens, [CLS] and [SEP] included.
        repeated: number of pairs whose text occurs in an earlier pair.
        repeated_pairs: number of pairs whose text and image both occur in an earlier pair.
        meetings: mean number of other pairs with the same text in a pair's batch.
        most_repeated: (a row, number of pairs with its text), the most frequent MOST_REPEATED first.
        share_of_unknown, highest_token_id: of the tokens that are left when the texts are truncated, as in training.
    """

    lengths: np.ndarray
    repeated: int
    repeated_pairs: int
    meetings: float
    most_repeated: list[tuple[int, int]]
    share_of_unknown: float
    highest_token_id: int


def survey_texts(table: PairTable, batch: int, max_seq_length: int, unknown_id: int) -> Texts:
    """Count lengths, repetitions and unknown tokens.

    Args:
        batch: pairs per batch over all processes.
        max_seq_length: to which training truncates the texts.
        unknown_id: of [UNK].
    """
    rows = np.arange(len(table))
    _, first, counts = np.unique(table.text_ids, return_index=True, return_counts=True)
    frequent = [index for index in np.argsort(-counts, kind="stable")[:MOST_REPEATED] if counts[index] > 1]
    return Texts(
        lengths=table.tokens(rows)[1],
        repeated=len(rows) - len(counts),
        repeated_pairs=len(rows) - len(np.unique(table.ids(rows), axis=0)),
        meetings=(min(batch, len(rows)) - 1)
        * float((counts * (counts - 1.0)).sum())
        / max(len(rows) * (len(rows) - 1), 1),
        most_repeated=[(int(first[index]), int(counts[index])) for index in frequent],
        **_truncated(table, max_seq_length, unknown_id),
    )


def _truncated(table: PairTable, max_seq_length: int, unknown_id: int) -> dict[str, float]:
    num_unknown, num_tokens, highest = 0, 0, 0
    for start in range(0, len(table), ROWS_AT_ONCE):
        tokens, lengths = table.tokens(np.arange(start, min(start + ROWS_AT_ONCE, len(table))))
        ends = lengths.cumsum()
        position = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
        inside = (position > 0) & (position < max_seq_length - 1)
        inside[ends - 1] = False  # [SEP]
        num_unknown += int((tokens[inside] == unknown_id).sum())
        num_tokens += int(inside.sum())
        highest = max(highest, int(tokens[inside].max(initial=0)), int(tokens[ends - 1].max()), int(tokens[0]))
    return {"share_of_unknown": num_unknown / max(num_tokens, 1), "highest_token_id": highest}


def read_images(
    images: DecodedImages,
    rows: np.ndarray,
    batch_size: int,
    num_workers: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> ImageBatch:
    """Read and decode the images of some rows; the column `digests` (n,) uint64 is of the pixels the model gets.

    Args:
        progress: called after each batch with the number of images in it.
    """
    read = partial(_read, images)
    loader: Iterable[ImageBatch] = DataLoader(rows.tolist(), batch_size, num_workers=num_workers, collate_fn=read)
    batches = []
    for batch in loader:
        batches.append(batch)
        progress(batch.total)
    return join(batches)


def join(batches: Iterable[ImageBatch]) -> ImageBatch:
    """Batches that `read_images` returned as one; there may be none."""
    rows, digests, bad = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], {}
    for batch in batches:
        rows.append(batch.rows)
        digests.append(batch.columns["digests"])
        bad |= batch.bad
    return ImageBatch(np.concatenate(rows), {"digests": np.concatenate(digests)}, bad)


def _read(images: DecodedImages, rows: list[int]) -> ImageBatch:
    """Runs in the worker, which sends digests instead of pixels."""
    loaded = images.load(rows)
    digests = [
        int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest(), "little")
        for pixels in loaded.columns.get("pixels", ())
    ]
    return loaded._replace(columns={"digests": np.array(digests, np.uint64)})
