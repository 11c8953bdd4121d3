"""The pairs of a data set, in order, from files of any kind."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from component.ground.reading import is_file
from component.ground.remote import for_each
from component.pairs.captions import read_caption_lines, read_captions_json
from component.pairs.chinese_clip import read_chinese_clip, tsv_of
from component.pairs.image_stores import ImageFolder, ImageStore
from component.pairs.keep_list import KeepList
from component.pairs.parquet import image_column, read_parquet_images
from component.pairs.paths import needs_normal_name, normal_name
from component.pairs.shards import IndexShards, index_shards, read_shards
from component.pairs.table import read_table, with_one_text
from component.pairs.table_files import Kind, file_and_split, is_shard, kind_of, pair_files


def needs_folder(path: str, columns: Mapping[str, str] | None = None) -> bool:
    """Whether the file names in a file are relative to a folder, image_path."""
    kind = kind_of(path)
    return kind not in (Kind.SHARD, Kind.CHINESE_CLIP) and not (kind is Kind.PARQUET and _holds_images(path, columns))


def tsvs_of(files: str | Sequence[str], image_path: str | None) -> list[str]:
    """The tsvs of those files that are Chinese-CLIP's texts. Raises ValueError if there is none for one of them."""
    return [tsv_of(path, image_path) for path in pair_files(files) if _kind(path, image_path) is Kind.CHINESE_CLIP]


def _kind(path: str, image_path: str | None) -> Kind:
    """`kind_of`, but with a tsv as image_path, texts are Chinese-CLIP's: its reader says what is wrong in them."""
    kind = kind_of(path)
    has_tsv = (image_path or "").lower().endswith(".tsv") and os.path.isfile(image_path)
    return Kind.CHINESE_CLIP if has_tsv and kind not in (Kind.SHARD, Kind.PARQUET) else kind


def _holds_images(path: str, columns: Mapping[str, str] | None) -> bool:
    return "filename" not in (columns or {}) and image_column(path) is not None


def check_pair_files(
    files: str | Sequence[str],
    image_path: str | None,
    columns: Mapping[str, str] | None = None,
    needs_images: bool = True,
) -> None:
    """Find faults before the files are read.

    Args:
        needs_images: False: a folder of the images need not be there, because their vectors are.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a shard is packed, or `image_path` is not what the kind of a file needs.
        ImportError: a file is Parquet and pyarrow is not installed.
    """
    paths = pair_files(files)
    are_there = for_each(is_file, [file_and_split(path)[0] for path in paths])
    missing = [path for path, is_there in zip(paths, are_there, strict=True) if not is_there]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"{', '.join(missing[:3])}{more}: no such file.")
    for path in paths:
        _require_plain_tar(path)
        if _kind(path, image_path) is Kind.CHINESE_CLIP:
            tsv_of(path, image_path)
        elif needs_images and needs_folder(path, columns) and not (image_path and os.path.isdir(image_path)):
            fault = "is not a folder" if os.path.exists(image_path or "") else "does not exist"
            given = f"the image folder {image_path} {fault}" if image_path else "no image folder is given"
            raise ValueError(f"{given}; the file names in {path} are relative to it.")


def _require_plain_tar(path: str) -> None:
    if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", path.lower()):
        raise ValueError(f"{path} is a packed tar, in which no image can be reached. Unpack it to a plain .tar.")


def read_pair_files(
    files: str | Sequence[str],
    image_path: str | None,
    columns: Mapping[str, str] | None = None,
    index_shards: IndexShards = index_shards,
    whole_gallery: bool = False,
    keep_list: KeepList | None = None,
) -> Iterator[tuple[ImageStore, pd.DataFrame]]:
    """Yield the pairs of all files in order, in frames whose images are in one store.

    Args:
        files: one name or several, see `pair_files`; `kind_of` tells what each is.
        image_path: folder that file names are relative to; the tsv of Chinese-CLIP's texts, see `tsv_of`.
        columns: of tables, see `read_table`.
        index_shards: see `read_shards`.
        whole_gallery: also yield the images of labelled data sets that no text names.
        keep_list: leave out the pairs that it does not keep; it must have been made of these files.

    Yields:
        The store, and the columns `text` and `filename`, which is a locator in the store, by its normal name if the
        store is a folder; of labelled data sets also `query`, see `component.pairs.labelled`.

    Raises:
        FileNotFoundError, ValueError, ImportError: as the readers of each kind.
    """
    for path, chunks in _read_each(pair_files(files), image_path, columns, index_shards, whole_gallery):
        yield from keep_list.filtered(path, chunks) if keep_list else chunks


def _read_each(
    files: Sequence[str],
    image_path: str | None,
    columns: Mapping[str, str] | None,
    index_shards: IndexShards,
    whole_gallery: bool,
) -> Iterator[tuple[str, Iterator[tuple[ImageStore, pd.DataFrame]]]]:
    """Yield each file with its pairs."""
    for are_shards, paths in itertools.groupby(files, is_shard):
        if are_shards:
            for index in read_shards(list(paths), index_shards):
                pairs = pd.DataFrame({"text": index.texts, "filename": index.locators}, dtype=str)
                yield index.shard.path, iter([(index.shard, pairs)])
            continue
        for path in paths:
            yield path, _read_one(path, image_path, columns, whole_gallery)


def _read_one(
    path: str, image_path: str | None, columns: Mapping[str, str] | None, whole_gallery: bool
) -> Iterator[tuple[ImageStore, pd.DataFrame]]:
    _require_plain_tar(path)
    if not is_file(file_and_split(path)[0]):
        raise FileNotFoundError(f"{path}: no such file.")
    kind = _kind(path, image_path)
    if kind is Kind.CHINESE_CLIP:
        yield from read_chinese_clip(path, image_path, whole_gallery)
        return
    if kind is Kind.PARQUET and _holds_images(path, columns):
        yield from ((images, with_one_text(chunk)) for images, chunk in read_parquet_images(path, columns))
        return
    if kind is Kind.CAPTIONS_JSON:
        chunks = read_captions_json(path, whole_gallery)
    elif kind is Kind.CAPTION_LINES:
        chunks = read_caption_lines(path)
    else:
        chunks = read_table(path, ("text", "filename"), only_required=True, columns=columns)
    for chunk in chunks:
        names = chunk["filename"].tolist()
        if needs_normal_name("\n".join(names)):  # asked once, because most tables have none
            chunk["filename"] = list(map(normal_name, names))
        yield ImageFolder(image_path), chunk
