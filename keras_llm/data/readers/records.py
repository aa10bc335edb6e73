"""Tables of text: CSV, TSV, JSONL, parallel text files and data sets by name, with errors that name
the file and the line."""

import csv
import io
import json
import pathlib

from keras_llm.data.readers.named import is_name, named_rows
from keras_llm.data.readers.parquet import read_parquet
from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.files import read_utf8, utf8_lines

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_TEXTS = (".txt", ".jsonl", ".parquet")


def read_records(path, columns):
    """Read some columns of a table.

    `.csv` and `.tsv` files have a first line with the names of the columns; CSV fields may be
    quoted, TSV fields are taken as they are. `.jsonl` files hold one JSON object a line; numbers
    and booleans become text as JSON spells them. Each may be compressed (`.csv.gz`). `.parquet`
    files need pyarrow. Of a folder, all such files directly in it are read in order of name; one
    that has none but a text file for each column (`source.txt`, `target.txt`) gives a record a
    line. Blank lines are skipped, but not those of parallel text files.

    Data sets by name are `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT` of the package `datasets`, and
    `tfds:NAME:SPLIT` or `tfds:NAME/CONFIG:SPLIT` of `tensorflow-datasets`, which fetch them when
    first used. NAME may be a folder that `save_to_disk` of the one, or a builder of the other,
    wrote. The split may be left out where there is one. Of columns that hold dicts `a.b` is a
    field; labels are given by their names.

    Args:
        path: str or path.
        columns: list of str, the names of the columns that are wanted.

    Returns:
        A list of tuples of str, with a value for each of `columns`.

    Raises:
        InputError: naming the file (and line) that is missing, not UTF-8, not JSON, without one
            of the columns, or with more or fewer fields than the first line; parallel files of
            different length; a data set that cannot be loaded; or if there is no record at all.
    """
    if is_name(path):
        records = list(named_rows(path, columns))
    else:
        records = _read(pathlib.Path(path), columns)
    if not records:
        raise InputError(f"{path} holds no record.")
    return records


def unread_files(path, columns=None):
    """The files of a folder that are no data, as far as their names tell.

    Args:
        path: str or path; of anything but a folder nothing is left unread.
        columns: list of str, those that `read_records` is asked for; None for `read_texts`.

    Returns:
        A list of paths, without those of hidden files.
    """
    if is_name(path) or not (folder := pathlib.Path(path)).is_dir():
        return []
    if columns is None:
        found, read = folder.rglob("*"), text_files(folder)
    else:
        found, read = folder.iterdir(), _table_files(folder) or _parallel_files(folder, columns)
    files = (file for file in found if file.is_file() and not file.name.startswith("."))
    return sorted({*files} - {*read})


def text_files(path):
    """The files that `read_texts` reads, in order of name."""
    if not path.is_dir():
        return [path]
    files = _files(path.rglob("*"), _TEXTS)
    if not files:
        raise InputError(f"{path} holds no {', '.join(_TEXTS)} file.")
    return files


def kind_of(file):
    """The suffix of a path, without a `.gz`."""
    return pathlib.Path(file.name.removesuffix(".gz")).suffix


def read_json_lines(file):
    """The lines of a JSONL file that are not blank: pairs of the line's number and the value.

    Raises:
        InputError: naming the line that is not UTF-8 or not JSON.
    """
    for number, line in enumerate(utf8_lines(file), 1):
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
            raise InputError(f"{path} holds no {', '.join(_TABLES)} file.")
    records = []
    for file in files:
        kind = kind_of(file)
        if kind not in _TABLES:
            raise InputError(f"{file}: the name must end in {', '.join(_TABLES)}, or .gz.")
        if kind == ".parquet":
            records += read_parquet(file, columns)
        elif kind == ".jsonl":
            records += _jsonl(file, columns)
        else:
            records += _table(file, read_utf8(file), columns)
    return records


def _files(found, kinds):
    return sorted(file for file in found if kind_of(file) in kinds and file.is_file())


def _table_files(folder):
    return _files(folder.iterdir(), _TABLES)


def _parallel_files(folder, columns):
    files = [folder / f"{column}.txt" for column in columns]
    return files if any(file.is_file() for file in files) else []


def _parallel(files):
    """The lines of parallel text files."""
    lines = [[line.rstrip("\r\n") for line in utf8_lines(file)] for file in files]
    counts = [len(column) for column in lines]
    if len(set(counts)) > 1:
        told = ", ".join(f"{file} has {n}" for file, n in zip(files, counts, strict=True))
        raise InputError(f"the lines do not pair up: {told}.")
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
