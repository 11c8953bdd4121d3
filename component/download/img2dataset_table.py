"""A table and a command for img2dataset, for more URLs than one machine should fetch."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import pandas as pd

from component.ground.files import new_file, new_folder
from component.ground.output_paths import require_empty_folder, require_not_an_input
from component.pairs.parquet import ParquetWriter
from component.pairs.table import has_filenames, read_table
from component.pairs.table_files import pair_files

SHARD_PAIRS = 10_000
FILE_ROWS = 1_000_000  # img2dataset reads a whole file at a time


class LinkTable(NamedTuple):
    """What img2dataset is to read: a Parquet file, or a folder of them.

    Attributes:
        rows: number of rows.
        has_filenames: whether there is a column `filename` next to `url` and `caption`.
    """

    path: str
    rows: int
    has_filenames: bool


def write_img2dataset_table(train_file: str, path: str, columns: Mapping[str, str] | None = None) -> LinkTable:
    """Write the table as Parquet with the columns `url`, `caption` and, if it has file names, `filename`.

    img2dataset reads CSV too, but guesses types: the text 007 arrives as the number 7, and NA as nothing.

    Args:
        train_file, columns: as for `Rows`.
        path: a name that ends in .parquet is one file; any other is a new or empty folder, for a file for each million
            rows.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read, or `path` would replace files.
        ImportError: pyarrow is not installed.
    """
    files, is_one_file = pair_files(train_file), path.endswith(".parquet")
    if is_one_file:
        require_not_an_input(path, files)
    else:
        require_empty_folder(path)
    named = any(has_filenames(file, columns) for file in files)
    names = {"url": "url", "text": "caption", **({"filename": "filename"} if named else {})}
    rows = 0

    def chunks() -> Iterator[pd.DataFrame]:
        nonlocal rows
        for file in files:
            for chunk in read_table(file, ("url", "text", "filename"), only_required=True, columns=columns):
                rows += len(chunk)
                yield chunk[list(names)].rename(columns=names)

    if is_one_file:
        with new_file(path, "wb") as file, ParquetWriter(file) as writer:
            for chunk in chunks():
                writer.append(chunk)
    else:
        with new_folder(path) as folder, ExitStack() as stack:
            writers = {}
            for chunk in chunks():
                number = max(rows - 1, 0) // FILE_ROWS
                if number not in writers:
                    stack.close()
                    file = stack.enter_context(open(os.path.join(folder, f"{number:05d}.parquet"), "wb"))
                    writers = {number: stack.enter_context(ParquetWriter(file))}
                writers[number].append(chunk)
    return LinkTable(path, rows, named)


def img2dataset_instructions(table: LinkTable, processes: int) -> str:
    """The command that downloads the table with img2dataset into shards, and what reads the shards afterwards."""
    options = {
        "url_list": shlex.quote(table.path),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        **({"save_additional_columns": """'["filename"]'"""} if table.has_filenames else {}),
        "output_format": "webdataset",
        "output_folder": "shards",
        "number_sample_per_shard": SHARD_PAIRS,
        "resize_mode": "keep_ratio",
        "image_size": 256,
        "resize_only_if_bigger": True,
        "distributor": "multiprocessing",
        "processes_count": processes,
        "thread_count": 64,
        "incremental_mode": "incremental",
    }
    command = "".join(f" \\\n  --{name} {value}" for name, value in options.items())
    return f"""{table.rows} rows written. On the machine or cluster that is to download:

img2dataset{command}

On a cluster, --distributor is pyspark or ray. Run the same command again to fetch the shards that are missing.
The shards are read as they are:  "train_file": "shards"
They are cleaned as they are:     python filter_data.py --train_file shards --verdicts verdicts"""
