"""Labelled texts and images for retrieval. Shapes: T texts, I images, P right pairs."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from component.image.load import load_image
from component.pairs.caption import is_caption
from component.pairs.image_stores import ImageStore
from component.pairs.keep_list import KeepList
from component.pairs.labelled import GALLERY
from component.pairs.sources import check_pair_files, read_pair_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalData:
    """Texts, images, and which belong together. No text and no image occurs twice.

    Attributes:
        texts: T queries.
        images: I images, decoded on access, which may raise BadImageError. Images without a text are part of the
            gallery.
        image_names: I file names, for messages.
        pairs: P right answers, as (text, image) indices.
    """

    texts: list[str]
    images: Sequence[Image.Image]
    image_names: list[str]
    pairs: list[tuple[int, int]]


class StoredImages(Sequence):
    """Images of several sources, decoded on access."""

    def __init__(self, found: Sequence[tuple[ImageStore, str]]):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, row: int) -> Image.Image:
        store, locator = self.found[row]
        return load_image(store.read(locator))


def read_retrieval_data(
    test_file: str | Sequence[str],
    image_path: str | None,
    columns: Mapping[str, str] | None = None,
    keep_list: KeepList | None = None,
) -> RetrievalData:
    """Read labelled pairs in any of the formats of `read_pair_files`.

    In tables and shards, equal texts are one query, and all their images are right answers. Each line of a .jsonl and
    each annotation of a COCO .json is a query of its own, even if another has the same text, and images without a
    text are part of the gallery. Texts without a visible character are left out; a warning counts them.

    Raises:
        ValueError: a file is malformed (the message names the line) or has no pairs.
        OSError: a file does not exist.
    """
    check_pair_files(test_file, image_path, columns)
    texts: dict[tuple[str, str | None], int] = {}
    images: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    found, num_empty = [], 0
    for store, chunk in read_pair_files(test_file, image_path, columns, whole_gallery=True, keep_list=keep_list):
        queries = chunk["query"] if "query" in chunk else itertools.repeat(None)
        for text, locator, query in zip(chunk["text"].str.strip(), chunk["filename"], queries, strict=False):
            if query != GALLERY and not is_caption(text):
                num_empty += 1
                continue
            name = store.filename(locator)
            image = images.setdefault(name, len(images))
            if image == len(found):
                found.append((store, locator))
            if query != GALLERY:
                pairs[texts.setdefault((text, query), len(texts)), image] = None
    files = test_file if isinstance(test_file, str) else ", ".join(test_file)
    if not pairs:
        raise ValueError(f"{files} has no text with an image.")
    if num_empty:
        logger.warning("%s: left out %d pairs with an empty text", files, num_empty)
    return RetrievalData([text for text, _ in texts], StoredImages(found), list(images), list(pairs))
