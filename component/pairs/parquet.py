"""Parquet tables, for which pyarrow is imported when it is needed."""

from collections.abc import Iterator, Sequence

import pandas as pd

from component.ground.optional import import_optional
from component.pairs.table import require_columns


def import_pyarrow():
    """pyarrow, with pyarrow.parquet in it. Raises ImportError with what to install."""
    import_optional("pyarrow.parquet", "Parquet")
    return import_optional("pyarrow", "Parquet")


def read_parquet(path: str, required: Sequence[str], chunk_rows: int = 20_000) -> Iterator[pd.DataFrame]:
    """Yield the required columns of a Parquet file in order, at most `chunk_rows` rows at a time.

    Every cell is a `str`: a number is written out, a null is "".

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: no Parquet file, a damaged one, a required column is missing or has no texts.
    """
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_columns(path, required, file.schema_arrow.names)
            for batch in file.iter_batches(chunk_rows, columns=list(required)):
                columns = ((name, batch.column(name).cast(pyarrow.string()).fill_null("")) for name in required)
                yield pd.DataFrame({name: column.to_numpy(zero_copy_only=False) for name, column in columns})
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
