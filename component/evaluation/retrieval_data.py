"""Labelled texts and pictures for retrieval, as users have them on disk.

Read are our own CSV, Chinese-CLIP's jsonl + tsv (MUGE, Flickr30K-CN and COCO-CN come so), and COCO-caption JSON.
Shapes: T texts, I images, P right pairs.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from PIL import Image

from component.evaluation.tsv_images import TsvImages
from component.image.load import BadImageError, load_image
from component.pairs.paths import image_file
from component.pairs.table import read_pairs


@dataclass(frozen=True)
class RetrievalData:
    """Texts, pictures, and which belong together; each text and each picture stands once.

    Attributes:
        texts: T queries.
        images: I pictures, decoded when asked for; may raise BadImageError. Those without a text are in the gallery.
        image_names: I file names or ids, for messages.
        pairs: P right (text, image) indices.
    """

    texts: list[str]
    images: Sequence[Image.Image]
    image_names: list[str]
    pairs: list[tuple[int, int]]


class FolderImages(Sequence):
    """Pictures of a folder by name, decoded when asked for; names that climb out of it are bad pictures."""

    def __init__(self, folder: str, names: Sequence[str]):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Image.Image:
        try:
            path = image_file(self.folder, self.names[row])
        except ValueError as error:
            raise BadImageError(str(error)) from None
        return load_image(path, self.folder)


def read_retrieval_data(test_file: str, image_path: str) -> RetrievalData:
    """Read any of the known formats, told apart by the ending of `test_file`.

    Args:
        test_file: .csv (text, filename), .jsonl (text_id, text, image_ids) or .json (COCO captions).
        image_path: the folder of the pictures; for .jsonl the tsv of `id<TAB>base64`.

    Raises:
        ValueError: an unknown ending, a malformed file (the message names the line), or nothing in it.
        OSError: a file is missing.
    """
    ending = os.path.splitext(test_file)[1].lower()
    readers = {".csv": read_csv, ".jsonl": read_chinese_clip, ".json": read_coco}
    if ending not in readers:
        raise ValueError(f"{test_file}: unknown ending {ending!r}; known are {', '.join(readers)}.")
    if ending == ".jsonl" and not os.path.isfile(image_path):
        raise ValueError(f"{image_path} is no file; a .jsonl needs the tsv of pictures (id<TAB>base64) beside it.")
    if ending != ".jsonl" and not os.path.isdir(image_path):
        raise ValueError(f"{image_path} is no folder; the file names in {test_file} are relative to one.")
    data = readers[ending](test_file, image_path)
    if not data.pairs:
        raise ValueError(f"{test_file} holds no text with a right picture.")
    return data


def read_csv(test_file: str, image_path: str) -> RetrievalData:
    """A table with the columns text and filename. Equal texts are one query, with all their pictures as right ones."""
    rows = pd.concat(read_pairs(test_file, only_required=True))
    texts = rows["text"].str.strip()
    text_index, texts = pd.factorize(texts[texts != ""])
    image_index, names = pd.factorize(rows["filename"][rows["text"].str.strip() != ""])
    pairs = list(dict.fromkeys(zip(text_index.tolist(), image_index.tolist(), strict=True)))
    names = names.tolist()
    return RetrievalData(texts.tolist(), FolderImages(image_path, names), names, pairs)


def read_chinese_clip(test_file: str, image_path: str) -> RetrievalData:
    """Chinese-CLIP's layout: lines of {"text_id", "text", "image_ids"}, and a tsv of pictures.

    Each line is a query of its own, also where another has the same text. Pictures of the tsv that no line names are
    in the gallery, as in MUGE.
    """
    texts, image_ids = [], []
    for number, entry in _json_lines(test_file):
        text, ids = _take(entry, f"{test_file}, line {number}", text=str, image_ids=list)
        texts.append(text)
        image_ids.append([str(image_id) for image_id in ids])
    images = TsvImages(image_path, wanted=(image_id for ids in image_ids for image_id in ids))
    row_of = {image_id: row for row, image_id in enumerate(images.ids)}
    pairs = [(text, row_of[image_id]) for text, ids in enumerate(image_ids) for image_id in dict.fromkeys(ids)]
    return RetrievalData(texts, images, images.ids, pairs)


def read_coco(test_file: str, image_path: str) -> RetrievalData:
    """COCO-caption JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    Each annotation is a query of its own.
    """
    with open(test_file, encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{test_file} is not JSON: {error.msg} in line {error.lineno}.") from None
    images, annotations = _take(content, test_file, images=list, annotations=list)
    names, row_of, texts, pairs = [], {}, [], []
    for number, image in enumerate(images):
        image_id, name = _take(image, f"{test_file}, images[{number}]", id=(int, str), file_name=str)
        row_of[image_id] = len(names)
        names.append(name)
    for number, annotation in enumerate(annotations):
        place = f"{test_file}, annotations[{number}]"
        image_id, caption = _take(annotation, place, image_id=(int, str), caption=str)
        if image_id not in row_of:
            raise ValueError(f"{place}: there is no image with the id {image_id!r}.")
        pairs.append((len(texts), row_of[image_id]))
        texts.append(caption)
    return RetrievalData(texts, FolderImages(image_path, names), names, pairs)


def _json_lines(path: str) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error.msg}.") from None


def _take(entry: Any, place: str, **keys: type | tuple[type, ...]) -> list[Any]:
    """The values of the keys, each checked for its type."""
    for key, wanted in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"{place}: `{key}` is missing (found: {found}).")
        if not isinstance(entry[key], wanted):
            names = " or ".join(kind.__name__ for kind in (wanted if isinstance(wanted, tuple) else (wanted,)))
            raise ValueError(f"{place}: `{key}` is {entry[key]!r}; expected {names}.")
    return [entry[key] for key in keys]
