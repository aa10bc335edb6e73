"""Read columns of Parquet files as text."""

from collections.abc import Iterator

from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.types import PathLike


def read_parquet(path: PathLike, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of some columns, with one batch of rows in memory at a time.

    Args:
        path: str or path of a Parquet file.
        columns: list of str.

    Yields:
        Tuples of str; numbers and booleans formatted as JSON.

    Raises:
        InputError: if pyarrow is not installed, the file is missing or not Parquet, a column does
            not exist, or a row has no text; the message names the file and the column or row.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: this needs pyarrow: pip install pyarrow.") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise InputError(
                        f"{path}: no column {column!r}; it has {', '.join(map(repr, names))}."
                    )
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    yield tuple(checked_text(where, name, row[name]) for name in columns)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a complete Parquet file: {error}.") from None
