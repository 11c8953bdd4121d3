"""The hand-off to img2dataset, for more links than one machine should fetch."""

import os

from component.pairs.parquet import import_pyarrow
from component.pairs.table import read_pairs


def write_img2dataset_table(train_file: str, parquet_file: str) -> int:
    """Write the table as Parquet with the columns `url`, `caption` and `filename`, and return the number of rows.

    img2dataset reads CSV too, but guesses types: the text 007 arrives as the number 7, and NA as nothing.

    Raises:
        ValueError, FileNotFoundError: `train_file` cannot be read.
        ImportError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    columns = {"url": "url", "caption": "text", "filename": "filename"}
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    rows, part = 0, f"{parquet_file}.part"
    try:
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for chunk in read_pairs(train_file, tuple(columns.values()), only_required=True):
                values = [chunk[column].tolist() for column in columns.values()]
                writer.write_table(pyarrow.table(values, schema=schema))
                rows += len(chunk)
        os.replace(part, parquet_file)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return rows
