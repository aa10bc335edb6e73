"""Read tables of text from files and named datasets, with errors that name the file and line."""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from keras_llm.data.readers.named import is_name, named_rows
from keras_llm.data.readers.parquet import read_parquet
from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.files import TABLE_SUFFIXES, read_utf8, text_lines
from keras_llm.types import PathLike

_TEXTS = (".txt", ".jsonl", ".parquet")


def read_records(path: PathLike, columns: list[str]) -> list[tuple[str, ...]]:
    """Read some columns of a table.

    `.csv` and `.tsv` files start with a line of column names; CSV fields may be quoted, TSV fields
    may not. `.jsonl` files have one JSON object per line; numbers and booleans are formatted as
    JSON. All of them may be compressed (`.csv.gz`). `.parquet` files need pyarrow. In a folder, all
    such files directly in it are read in order of name. A folder without them but with one text
    file per column (`source.txt`, `target.txt`) yields one record per line. Blank lines are
    skipped, except in parallel text files.

    Named datasets are `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT` of the package `datasets`, and
    `tfds:NAME:SPLIT` or `tfds:NAME/CONFIG:SPLIT` of `tensorflow-datasets`, which download them on
    first use. NAME may be a folder written by `save_to_disk` of the former or by a builder of the
    latter. The split is optional if there is only one. For columns of dicts, `a.b` is a field;
    labels are returned as their names.

    Args:
        path: str or path.
        columns: list of str, the names of the columns to read.

    Returns:
        A list of tuples of str, with one value per column.

    Raises:
        InputError: if a file is missing, not UTF-8 or not JSON, lacks a column, or has a line with
            more or fewer fields than the first; the message names the file and the line. Also if
            parallel files differ in length, a dataset cannot be loaded, or there is no record.
    """
    if is_name(path):
        records = list(named_rows(path, columns))
    else:
        records = _read(pathlib.Path(path), columns)
    if not records:
        raise InputError(f"{path} has no record.")
    return records


def unread_files(path: PathLike, columns: list[str] | None = None) -> list[pathlib.Path]:
    """Return the files of a folder that are ignored because of their names.

    Args:
        path: str or path. For anything but a folder, the result is empty.
        columns: list of str, the columns passed to `read_records`; None for `read_texts`.

    Returns:
        A list of paths, excluding hidden files.
    """
    if is_name(path) or not (folder := pathlib.Path(path)).is_dir():
        return []
    if columns is None:
        present, read = folder.rglob("*"), text_files(folder)
    else:
        present = folder.iterdir()
        read = _table_files(folder) or _parallel_files(folder, columns)
    files = (file for file in present if file.is_file() and not file.name.startswith("."))
    return sorted({*files} - {*read})


def text_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that `read_texts` reads, in order of name."""
    if not path.is_dir():
        return [path]
    files = _files(path.rglob("*"), _TEXTS)
    if not files:
        raise InputError(f"{path} has no {', '.join(_TEXTS)} file.")
    return files


def kind_of(file: pathlib.Path) -> str:
    """Return the suffix of a path, ignoring `.gz`."""
    return pathlib.Path(file.name.removesuffix(".gz")).suffix


def read_json_lines(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Yield the non-blank lines of a JSONL file as pairs of the line number and the value.

    Raises:
        InputError: if a line is not UTF-8 or not JSON; the message names the line.
    """
    for number, line in enumerate(text_lines(file), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {number}: not JSON: {error}.") from None


def _read(path, columns):
    files = [path]
    if path.is_dir():
        files = _table_files(path)
        if not files and (parallel := _parallel_files(path, columns)):
            return _parallel(parallel)
        if not files:
            raise InputError(f"{path} has no {', '.join(TABLE_SUFFIXES)} file.")
    records = []
    for file in files:
        kind = kind_of(file)
        if kind not in TABLE_SUFFIXES:
            raise InputError(f"{file}: the name must end in {', '.join(TABLE_SUFFIXES)}, or .gz.")
        if kind == ".parquet":
            records += read_parquet(file, columns)
        elif kind == ".jsonl":
            records += _jsonl(file, columns)
        else:
            records += _table(file, read_utf8(file), columns)
    return records


def _files(paths, kinds):
    return sorted(file for file in paths if kind_of(file) in kinds and file.is_file())


def _table_files(folder):
    return _files(folder.iterdir(), TABLE_SUFFIXES)


def _parallel_files(folder, columns):
    files = [folder / f"{column}.txt" for column in columns]
    return files if any(file.is_file() for file in files) else []


def _parallel(files):
    """Read the lines of parallel text files as rows."""
    lines = [[line.rstrip("\n") for line in text_lines(file)] for file in files]
    counts = [len(column) for column in lines]
    if len(set(counts)) > 1:
        lengths = ", ".join(f"{file} has {n}" for file, n in zip(files, counts, strict=True))
        raise InputError(f"the files must have the same number of lines, but {lengths}.")
    return list(zip(*lines, strict=True))


def _jsonl(file, columns):
    for number, record in read_json_lines(file):
        where = f"{file}, line {number}"
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object.")
        for column in columns:
            if not isinstance(record.get(column), (str, int, float)):
                raise InputError(
                    f"{where}: no text in column {column!r}; it has "
                    f"{', '.join(map(repr, record)) or 'none'}."
                )
        yield tuple(checked_text(where, column, record[column]) for column in columns)


def _table(file, text, columns):
    csv.field_size_limit(2**31 - 1)
    is_tsv = kind_of(file) == ".tsv"
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=not is_tsv,
    )
    line, head = 1, None
    try:
        for row in rows:
            is_blank = not row or (len(row) == 1 and row[0].isspace())
            if head is None:
                head = _checked_head(file, line, row, columns) if any(map(str.strip, row)) else None
            elif not is_blank:
                if len(row) != len(head):
                    raise InputError(
                        f"{file}, line {line}: {len(row)} fields, but the first line has "
                        f"{len(head)} columns."
                    )
                yield tuple(row[head.index(column)] for column in columns)
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}, line {line}: {error}.") from None


def _checked_head(file, line, head, columns):
    for column in columns:
        if column not in head:
            raise InputError(
                f"{file}, line {line}: no column {column!r}; it has {', '.join(map(repr, head))}."
            )
        if head.count(column) > 1:
            raise InputError(f"{file}, line {line}: several columns are named {column!r}.")
    return head
