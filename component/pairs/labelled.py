"""Texts and pictures as others publish them: Chinese-CLIP's jsonl + tsv, and COCO-caption JSON.

Both say which texts are queries of their own, so their rows have a third column beside `text` and `filename`: `query`,
the place in the file. Rows with the same one are one text with several pictures.
"""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from component.pairs.json_text import parse_json, require_unicode
from component.pairs.text_file import open_text, text_lines
from component.pairs.tsv_images import ImageTsv, index_tsv

logger = logging.getLogger(__name__)

CHUNK_ROWS = 100_000
GALLERY = ""  # in place of a query: a picture whether or not a text names it


def read_chinese_clip(
    path: str, image_path: str | None, whole_gallery: bool = False
) -> Iterator[tuple[ImageTsv, pd.DataFrame]]:
    """Lines of {"text_id", "text", "image_ids"}, and a tsv of pictures, see `tsv_of`.

    Args:
        whole_gallery: yield each picture of the tsv first, with the query GALLERY, as MUGE counts them.

    Raises:
        ValueError: a malformed file; the message names the line.
    """
    tsv, locators = index_tsv(tsv_of(path, image_path))

    def rows() -> Iterator[tuple[str, str, str]]:
        with open_text(path) as file:
            for number, line in enumerate(text_lines(file, path), 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                text, ids = _take(_parse(line, place), place, text=str, image_ids=list)
                for image_id in dict.fromkeys(_name(value, place, "image_ids") for value in ids):
                    yield text, locators.get(image_id, ImageTsv.missing(image_id)), place

    gallery = (("", locator, GALLERY) for locator in locators.values())
    for chunk in _chunks(itertools.chain(gallery if whole_gallery else (), rows())):
        yield tsv, chunk


def tsv_of(path: str, image_path: str | None) -> str:
    """The tsv of a jsonl: `image_path` itself, or Chinese-CLIP's name for it (valid_texts.jsonl → valid_imgs.tsv) in
    that folder or beside the jsonl. Raises ValueError where there is none."""
    name = os.path.splitext(os.path.basename(path))[0].removesuffix("_texts") + "_imgs.tsv"
    folders = filter(None, (image_path, os.path.dirname(os.path.abspath(path))))
    for candidate in filter(None, (image_path, *(os.path.join(folder, name) for folder in folders))):
        if os.path.isfile(candidate):
            return candidate
    raise ValueError(
        f"{image_path} is no file; a .jsonl needs the tsv of pictures (id<TAB>base64) as image_path, or as {name} in "
        f"that folder or beside {path}."
    )


def read_coco(path: str, whole_gallery: bool = False) -> Iterator[pd.DataFrame]:
    """COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    Args:
        whole_gallery: yield each image first, with the query GALLERY.

    Raises:
        ValueError: a malformed file; the message names the place.
    """
    with open_text(path) as file:
        content = _parse(file.read(), path)
    images, annotations = _take(content, path, images=list, annotations=list)
    names = {}
    for number, image in enumerate(images):
        place = f"{path}, images[{number}]"
        image_id, name = _take(image, place, id=(int, str), file_name=str)
        names[image_id] = _name(name, place, "file_name")

    def rows() -> Iterator[tuple[str, str, str]]:
        for number, annotation in enumerate(annotations):
            place = f"{path}, annotations[{number}]"
            image_id, caption = _take(annotation, place, image_id=(int, str), caption=str)
            if image_id not in names:
                raise ValueError(f"{place}: there is no image with the id {image_id!r}.")
            yield caption, names[image_id], place

    gallery = (("", name, GALLERY) for name in names.values())
    return _chunks(itertools.chain(gallery if whole_gallery else (), rows()))


def _chunks(rows: Iterable[tuple[str, str, str]]) -> Iterator[pd.DataFrame]:
    """Frames of rows; texts that are no Unicode become empty ones, and are counted."""
    unreadable, first = 0, ""
    while batch := list(itertools.islice(rows, CHUNK_ROWS)):
        for number, (text, locator, query) in enumerate(batch):
            try:
                require_unicode(text)
            except ValueError:
                unreadable, first = unreadable + 1, first or query
                batch[number] = "", locator, query
        yield pd.DataFrame(batch, columns=["text", "filename", "query"], dtype=str)
    if unreadable:
        logger.warning("%d captions hold half a character and count as empty (the first: %s).", unreadable, first)


def _parse(content: str, place: str) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}.") from None


def _name(value: Any, place: str, key: str) -> str:
    if not isinstance(value, (int, str)):
        raise ValueError(f"{place}: `{key}` has {value!r}; expected int or str.")
    try:
        return require_unicode(str(value))
    except ValueError as error:
        raise ValueError(f"{place}: `{key}` {error}.") from None


def _take(entry: Any, place: str, **keys: type | tuple[type, ...]) -> list[Any]:
    """The values of the keys, each checked for its type."""
    for key, wanted in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"{place}: `{key}` is missing (found: {found}).")
        if not isinstance(entry[key], wanted):
            names = " or ".join(kind.__name__ for kind in (wanted if isinstance(wanted, tuple) else (wanted,)))
            raise ValueError(f"{place}: `{key}` is {entry[key]!r:.80}; expected {names}.")
    return [entry[key] for key in keys]
