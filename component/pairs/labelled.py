"""Data sets that say which texts are queries of their own.

Their rows have a third column next to `text` and `filename`: `query`, the position in the file. Rows with the same
query are one text with several images.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator

import pandas as pd

from component.pairs.json_text import require_unicode

logger = logging.getLogger(__name__)

CHUNK_ROWS = 100_000
GALLERY = ""  # instead of a query: an image of the gallery, whether or not a text names it


def labelled_frames(rows: Iterable[tuple[str, str, str]], gallery: Iterable[str] = ()) -> Iterator[pd.DataFrame]:
    """Frames of (text, filename, query) rows, after those of the gallery. A text that is not Unicode becomes "".

    Args:
        gallery: file names to yield first, with the query GALLERY.
    """
    rows, num_broken, first = itertools.chain((("", name, GALLERY) for name in gallery), rows), 0, ""
    while batch := list(itertools.islice(rows, CHUNK_ROWS)):
        for number, (text, filename, query) in enumerate(batch):
            try:
                require_unicode(text)
            except ValueError:
                num_broken, first = num_broken + 1, first or query
                batch[number] = "", filename, query
        yield pd.DataFrame(batch, columns=["text", "filename", "query"], dtype=str)
    if num_broken:
        logger.warning("%d captions hold half a character and count as empty (the first: %s).", num_broken, first)
