"""A table and a command for img2dataset, for more URLs than one machine should fetch."""

import shlex
from collections.abc import Mapping

from component.ground.files import new_file
from component.pairs.parquet import import_pyarrow
from component.pairs.table import read_table
from component.pairs.table_files import pair_files


def write_img2dataset_table(train_file: str, parquet_file: str, columns: Mapping[str, str] | None = None) -> int:
    """Write the table as Parquet with the columns `url`, `caption` and `filename`, and return the number of rows.

    img2dataset reads CSV too, but guesses types: the text 007 arrives as the number 7, and NA as nothing.

    Args:
        train_file, columns: as for `Rows`.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        ImportError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    written = {"url": "url", "caption": "text", "filename": "filename"}
    schema = pyarrow.schema([(name, pyarrow.string()) for name in written])
    rows = 0
    with new_file(parquet_file, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for path in pair_files(train_file):
            for chunk in read_table(path, tuple(written.values()), only_required=True, columns=columns):
                values = [chunk[column].tolist() for column in written.values()]
                writer.write_table(pyarrow.table(values, schema=schema))
                rows += len(chunk)
    return rows


SHARD_PAIRS = 10_000


def img2dataset_instructions(parquet_file: str, rows: int, processes: int) -> str:
    """The command that downloads the table with img2dataset into shards, and what reads the shards afterwards."""
    options = {
        "url_list": shlex.quote(parquet_file),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": """'["filename"]'""",
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
    last = max(0, -(-rows // SHARD_PAIRS) - 1)
    return f"""{rows} rows written. On the machine or cluster that is to download:

img2dataset{command}

On a cluster, --distributor is pyspark or ray. Run the same command again to fetch the shards that are missing.
The shards are read as they are:  "train_file": "shards/{{00000..{last:05d}}}.tar"
filter_data.py reads a table and a folder of images; for shards, img2dataset itself leaves out small and narrow images:
--min_image_size 64 --max_aspect_ratio 3"""
