"""Labelled texts and pictures for retrieval. Shapes: T texts, I images, P right pairs."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from component.image.load import load_image
from component.pairs.caption import is_caption
from component.pairs.labelled import GALLERY
from component.pairs.sources import Place, check_pair_files, read_pair_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalData:
    """Texts, pictures, and which belong together; each text and each picture stands once.

    Attributes:
        texts: T queries.
        images: I pictures, decoded when asked for; may raise BadImageError. Those without a text are in the gallery.
        image_names: I file names, for messages.
        pairs: P right (text, image) indices.
    """

    texts: list[str]
    images: Sequence[Image.Image]
    image_names: list[str]
    pairs: list[tuple[int, int]]


class StoredImages(Sequence):
    """Pictures by where they lie, decoded when asked for."""

    def __init__(self, found: Sequence[tuple[Place, str]]):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, row: int) -> Image.Image:
        place, locator = self.found[row]
        return load_image(place.read(locator))


def read_retrieval_data(test_file: str | Sequence[str], image_path: str | None) -> RetrievalData:
    """Read labelled pairs in any of the formats of `read_pair_files`.

    In tables and shards, equal texts are one query, with all their pictures as right ones. Each line of a .jsonl and
    each annotation of a COCO .json is a query of its own, also where another has the same text, and pictures that none
    of them names are in the gallery. Texts in which nothing is to be seen are left out and counted.

    Raises:
        ValueError: a malformed file (the message names the line), or nothing in it.
        OSError: a file is missing.
    """
    check_pair_files(test_file, image_path)
    texts: dict[tuple[str, str | None], int] = {}
    images: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    found, num_empty = [], 0
    for place, chunk in read_pair_files(test_file, image_path, whole_gallery=True):
        queries = chunk["query"] if "query" in chunk else itertools.repeat(None)
        for text, locator, query in zip(chunk["text"].str.strip(), chunk["filename"], queries, strict=False):
            if query != GALLERY and not is_caption(text):
                num_empty += 1
                continue
            name = place.filename(locator)
            image = images.setdefault(name, len(images))
            if image == len(found):
                found.append((place, locator))
            if query != GALLERY:
                pairs[texts.setdefault((text, query), len(texts)), image] = None
    if not pairs:
        raise ValueError(f"{test_file} holds no text with a right picture.")
    if num_empty:
        logger.warning("%s: %d pairs have an empty text and are left out.", test_file, num_empty)
    return RetrievalData([text for text, _ in texts], StoredImages(found), list(images), list(pairs))
