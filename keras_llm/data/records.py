"""Tables of text: CSV, TSV and JSONL, with errors that name the file and the line."""

import csv
import io
import json
import pathlib

from keras_llm.data.parquet import read_parquet
from keras_llm.errors import InputError
from keras_llm.files import read_utf8

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_records(path, columns):
    """Read some columns of a table.

    `.csv` and `.tsv` files have a first line with the names of the columns; CSV fields may be
    quoted, TSV fields are taken as they are. `.jsonl` files hold one JSON object a line; numbers
    and booleans become text as JSON spells them. Each may be compressed (`.csv.gz`). `.parquet`
    files need pyarrow. Of a folder, all such files directly in it are read in order of name. Blank
    lines are skipped.

    Args:
        path: str or path.
        columns: list of str, the names of the columns that are wanted.

    Returns:
        A list of tuples of str, with a value for each of `columns`.

    Raises:
        InputError: naming the file (and line) that is missing, not UTF-8, not JSON, without one
            of the columns, or with more or fewer fields than the first line; or if there is no
            record at all.
    """
    path = pathlib.Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _kind(file) in _SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no {', '.join(_SUFFIXES)} file.")
    records = []
    for file in files:
        kind = _kind(file)
        if kind not in _SUFFIXES:
            raise InputError(f"{file}: the name must end in {', '.join(_SUFFIXES)}, or .gz.")
        if kind == ".parquet":
            records += read_parquet(file, columns)
            continue
        text = read_utf8(file)
        records += _jsonl(file, text, columns) if kind == ".jsonl" else _table(file, text, columns)
    if not records:
        raise InputError(f"{path} holds no record.")
    return records


def read_json_lines(file, text):
    """The lines of a JSONL file that are not blank: pairs of the line's number and the value.

    Raises:
        InputError: naming the line that is not JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not JSON: {error}.") from None


def _kind(file):
    return pathlib.Path(file.name.removesuffix(".gz")).suffix


def _jsonl(file, text, columns):
    for number, record in read_json_lines(file, text):
        if not isinstance(record, dict):
            raise InputError(f"{file}, line {number}: not a JSON object.")
        for column in columns:
            if not isinstance(record.get(column), (str, int, float)):
                raise InputError(
                    f"{file}, line {number}: no text in column {column!r}; it has "
                    f"{', '.join(map(repr, record)) or 'none'}."
                )
        values = (record[column] for column in columns)
        yield tuple(v if isinstance(v, str) else json.dumps(v) for v in values)


def _table(file, text, columns):
    csv.field_size_limit(2**31 - 1)
    is_tsv = _kind(file) == ".tsv"
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=not is_tsv,
    )
    line, head = 1, None
    try:
        for row in rows:
            if head is None and any(row):
                head = _checked_head(file, line, row, columns)
            elif row:
                if len(row) != len(head):
                    raise InputError(
                        f"{file}, line {line}: {len(row)} fields where the first line names "
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
    return head
