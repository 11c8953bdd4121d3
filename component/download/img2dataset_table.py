"""The hand-off to img2dataset, for more links than one machine should fetch."""

from component.ground.files import new_file
from component.pairs.parquet import import_pyarrow
from component.pairs.table import read_table


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
    rows = 0
    with new_file(parquet_file, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for chunk in read_table(train_file, tuple(columns.values()), only_required=True):
            values = [chunk[column].tolist() for column in columns.values()]
            writer.write_table(pyarrow.table(values, schema=schema))
            rows += len(chunk)
    return rows
