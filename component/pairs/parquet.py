"""Parquet tables and the images in them; pyarrow is imported when it is needed."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pandas as pd

from component.ground.file_state import FileState
from component.ground.optional import import_optional
from component.ground.reading import open_to_read
from component.image.reading import SINCE_INDEXED, BadImageError
from component.pairs.columns import KNOWN_NAMES, ChooseColumns, find_columns, is_image_column

ROW_GROUP_ROWS = 100_000  # that are written
CHUNK_ROWS = 20_000  # that are read at a time


def import_pyarrow():
    """pyarrow, with pyarrow.parquet in it. Raises ImportError with what to install."""
    import_optional("pyarrow.parquet", "Parquet")
    return import_optional("pyarrow", "Parquet")


def read_parquet(path: str, choose: ChooseColumns, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Yield columns of a Parquet file in order, at most `chunk_rows` rows at a time.

    A cell is a `str`: a number is written out, a null is "". A list of texts stays a list of `str`.

    Args:
        choose: which columns to yield, see `component.pairs.table`. If it chooses all, nested ones are left out.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged; or a chosen column does not hold texts, or bytes that are not UTF-8.
    """
    with open_parquet(path) as file:
        schema = file.schema_arrow
        chosen = choose(schema.names)
        if len(chosen) == len(schema.names):
            chosen = [(name, at) for name, at in chosen if name in KNOWN_NAMES or not _is_nested(schema.types[at])]
        yield from _frames(file, path, {name: schema.names[position] for name, position in chosen}, chunk_rows)


def read_parquet_images(
    path: str, columns: Mapping[str, str] | None
) -> Iterator[tuple["ParquetImages", pd.DataFrame]]:
    """Yield the pairs of a file that holds its images, as `image_column` finds them.

    Yields:
        The store, and the columns `text`, which may hold lists, and `filename`, a locator in the store.

    Raises:
        ImportError, ValueError: as `read_parquet`.
    """
    with open_parquet(path) as file:
        text = find_columns(path, file.schema_arrow.names, ("text",), columns)["text"]
        images = ParquetImages(path, FileState.of(path), _image_column(file))
        for group in range(file.num_row_groups):
            first = 0
            for chunk in _frames(file, path, {"text": text}, CHUNK_ROWS, [group]):
                chunk["filename"] = [f"{group} {first + row}" for row in range(len(chunk))]
                first += len(chunk)
                yield images, chunk


def image_column(path: str) -> str | None:
    """The column of a Parquet file that holds images: bytes, or Hugging Face's struct of `bytes` and `path`."""
    with open_parquet(path) as file:
        return _image_column(file)


@dataclass(frozen=True)
class ParquetImages:
    """The images in a Parquet file in one state; a locator is the row group and the row in it.

    A process keeps the images of the row group that it read last: reading in order is cheap, and each image of a
    shuffled epoch costs the reading of its row group.
    """

    path: str
    state: FileState
    column: str

    def filename(self, locator: str) -> str:
        return f"{self.path}/{locator.replace(' ', '/')}"

    def read(self, locator: str) -> bytes:
        """The bytes of an image.

        Raises:
            BadImageError: the row has no image, or the file is missing or has changed since it was read.
            OSError: the file cannot be read.
        """
        try:
            if FileState.of(self.path) != self.state:
                raise BadImageError(f"the file has changed {SINCE_INDEXED}")
            group, row = map(int, locator.split())
            image = _images_of(self, group)[row].as_py()
        except FileNotFoundError:
            raise BadImageError(f"the file was removed {SINCE_INDEXED}") from None
        except IndexError:
            raise BadImageError("the file is damaged: it has fewer images than it says") from None
        if image is None:
            raise BadImageError("the row has no image")
        return image


@functools.lru_cache(maxsize=1)
def _images_of(images: ParquetImages, group: int) -> Any:
    with open_parquet(images.path) as file:
        column = file.read_row_group(group, columns=[images.column]).column(images.column)
    is_struct = import_pyarrow().types.is_struct(column.type)
    return column.flatten()[column.type.get_field_index("bytes")] if is_struct else column


class ParquetWriter:
    """Frames → a Parquet file; a context manager.

    Args:
        schema: pyarrow's; None: all columns are texts, and the first frame names them.
    """

    def __init__(self, file: BinaryIO, schema: Any = None):
        self._file, self._pyarrow, self._schema, self._writer = file, import_pyarrow(), schema, None
        self._tables, self._rows = [], 0  # of the row group that is not written yet

    def append(self, chunk: pd.DataFrame) -> None:
        if self._writer is None:
            self._schema = self._schema or self._pyarrow.schema([(name, "string") for name in chunk.columns])
            self._writer = self._pyarrow.parquet.ParquetWriter(self._file, self._schema)
        columns = [chunk.iloc[:, position].tolist() for position in range(chunk.shape[1])]
        self._tables.append(self._pyarrow.table(columns, schema=self._schema))
        self._rows += len(chunk)
        if self._rows >= ROW_GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        self._writer.write_table(self._pyarrow.concat_tables(self._tables))
        self._tables, self._rows = [], 0

    def __enter__(self):
        return self

    def __exit__(self, error_type, *exc_info):
        if self._writer:
            if self._tables and error_type is None:
                self._write()
            self._writer.close()


@contextmanager
def open_parquet(path: str, **options) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, made with these options.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged, here or when it is read inside the block.
    """
    pyarrow = import_pyarrow()
    try:
        with open_to_read(path) as source, pyarrow.parquet.ParquetFile(source, **options) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _frames(
    file: Any, path: str, columns: Mapping[str, str], chunk_rows: int, row_groups: list[int] | None = None
) -> Iterator[pd.DataFrame]:
    """Frames of columns: the name in the frame → the name in the file. A file without rows is one empty frame."""
    for batch in file.iter_batches(chunk_rows, row_groups, columns=list(columns.values())):
        texts = {name: _texts(path, column, batch.column(column)) for name, column in columns.items()}
        yield pd.DataFrame(texts, dtype=object)
    if not file.metadata.num_rows:
        yield pd.DataFrame({name: [] for name in columns}, dtype=object)


def _texts(path: str, name: str, column: Any) -> list[str] | list[list[str]]:
    pyarrow = import_pyarrow()
    try:
        if _is_list(column.type):
            lists = column.cast(pyarrow.list_(pyarrow.string()))
            lists.validate(full=True)
            return [[text or "" for text in texts or ()] for texts in lists.to_pylist()]
        texts = column.cast(pyarrow.string())
        texts.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        raise ValueError(
            f"{path}: the column `{name}` holds bytes that are not UTF-8. Write it again as UTF-8."
        ) from None
    return texts.fill_null("").to_pylist()


def _is_list(kind: Any) -> bool:
    types = import_pyarrow().types
    return types.is_list(kind) or types.is_large_list(kind)


def _is_nested(kind: Any) -> bool:
    types = import_pyarrow().types
    return types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _image_column(file: Any) -> str | None:
    types = import_pyarrow().types
    for field in file.schema_arrow:
        is_bytes = types.is_binary(field.type) or types.is_large_binary(field.type)
        is_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or (is_bytes and is_image_column(field.name)):
            return field.name
    return None
