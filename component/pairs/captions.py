"""Captions by image: COCO's JSON, Karpathy's JSON, and lines of a name and a caption."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from component.pairs.json_text import name_at, parse_json, take
from component.pairs.labelled import labelled_frames
from component.pairs.table_files import CAPTION_LINE, file_and_split
from component.pairs.text_file import open_text, text_lines

logger = logging.getLogger(__name__)


def read_captions_json(path: str, whole_gallery: bool = False) -> Iterator[pd.DataFrame]:
    """COCO: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; or Karpathy: {"images":
    [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}, of which `captions.json#train` is one split.

    Args:
        whole_gallery: yield each image first, with the query GALLERY.

    Raises:
        ValueError: a malformed file, or two images with one id; the message names the position.
    """
    file_path, split = file_and_split(path)
    with open_text(file_path) as file:
        content = parse_json(file.read(), file_path)
    (images,) = take(content, file_path, images=list)
    if isinstance(content.get("annotations"), list) or not any("sentences" in image for image in _objects(images)):
        if split:
            raise ValueError(f"{file_path} has no splits: leave #{split} out.")
        return _coco(file_path, content, whole_gallery)
    return _karpathy(file_path, images, split, whole_gallery)


def _coco(path: str, content: Any, whole_gallery: bool) -> Iterator[pd.DataFrame]:
    images, annotations = take(content, path, images=list, annotations=list)
    names: dict[int | str, str] = {}
    for number, image in enumerate(images):
        where = f"{path}, images[{number}]"
        image_id, name = take(image, where, id=(int, str), file_name=str)
        if names.setdefault(image_id, name_at(name, where, "file_name")) != name:
            raise ValueError(
                f"{where}: the id {image_id!r} is that of {names[image_id]} too. If files were merged, give them one "
                "by one, as a list."
            )
    referred = set()

    def rows() -> Iterator[tuple[str, str, str]]:
        for number, annotation in enumerate(annotations):
            where = f"{path}, annotations[{number}]"
            image_id, caption = take(annotation, where, image_id=(int, str), caption=str)
            if image_id not in names:
                raise ValueError(f"{where}: there is no image with the id {image_id!r}.")
            referred.add(image_id)
            yield caption, names[image_id], where
        if not whole_gallery and len(referred) < len(names):
            logger.warning("%s: %d of %d images have no caption.", path, len(names) - len(referred), len(names))

    return labelled_frames(rows(), names.values() if whole_gallery else ())


def _karpathy(path: str, images: list, split: str | None, whole_gallery: bool) -> Iterator[pd.DataFrame]:
    splits = Counter(str(image.get("split", "")) for image in _objects(images))
    if split and split not in splits:
        raise ValueError(f"{path} has no split {split} (found: {', '.join(splits)}).")
    if not split and len(splits) > 1:
        counts = ", ".join(f"{name} ({count} images)" for name, count in splits.items())
        logger.warning("%s: all splits are read: %s. To read one, give %s#%s.", path, counts, path, next(iter(splits)))
    found = []
    for number, image in enumerate(images):
        where = f"{path}, images[{number}]"
        name, sentences = take(image, where, filename=str, sentences=list)
        if split in (None, str(image.get("split", ""))):
            folder = f"{image['filepath']}/" if image.get("filepath") else ""
            captions = (take(sentence, where, raw=str)[0] for sentence in sentences)
            found.append((name_at(folder + name, where, "filename"), where, list(captions)))
    rows = (
        (caption, name, f"{where}, sentence {number}")
        for name, where, captions in found
        for number, caption in enumerate(captions)
    )
    return labelled_frames(rows, [name for name, _, _ in found] if whole_gallery else ())


def _objects(entries: list) -> Iterator[dict]:
    return (entry for entry in entries if isinstance(entry, dict))


def read_caption_lines(path: str) -> Iterator[pd.DataFrame]:
    """Lines such as `1.jpg#zhc#0<TAB>caption`, or with a blank instead of the tab. A bare name gets the ending .jpg.

    Raises:
        ValueError: another line; the message names it.
    """

    def rows() -> Iterator[tuple[str, str, str]]:
        with open_text(path) as file:
            for number, line in enumerate(text_lines(file, path), 1):
                if not line.strip("\ufeff \t\r\n"):
                    continue
                match = CAPTION_LINE.match(line.rstrip("\r\n"))
                if not match:
                    raise ValueError(
                        f"{path}, line {number}: expected a name, a tab and a caption, as in the first line."
                    )
                name = match["name"]
                yield match["text"], name if "." in name else f"{name}.jpg", f"{path}, line {number}"

    return labelled_frames(rows())
