"""Documents from text files, JSONL and tables, and their split into training and held-out."""

import hashlib
import pathlib

from keras_llm.data.readers.named import is_name, named_rows
from keras_llm.data.readers.parquet import read_parquet
from keras_llm.data.readers.records import kind_of, read_json_lines, text_files
from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError
from keras_llm.files import utf8_lines

_BLOCK = 1 << 20  # characters


def read_texts(path, text_field="text", separator="\n\n"):
    """Read the documents of a file, a folder, or a data set by name.

    `.jsonl` files hold one JSON object a line with the text in `text_field`, `.parquet` files a
    row with it (this needs pyarrow). Any other file is UTF-8 text whose documents are kept apart by
    `separator`. Names may end in `.gz`. Of a folder, all `.txt`, `.jsonl` and `.parquet` files
    below it are read in order of name. `hf:NAME:SPLIT` and `tfds:NAME:SPLIT` are data sets by name,
    see `read_records`. Documents of white space alone are left out.

    Args:
        path: str or path.
        text_field: str. The field of a JSONL record, or the column of a table.
        separator: str. Blank lines by default; "" takes a whole file as one document.

    Returns:
        A list of str.

    Raises:
        InputError: naming the file (and line) that is missing, not UTF-8, not JSON, or has no
            such field; or if there is no text at all.
    """
    documents = [text for text in stream_texts(path, text_field, separator) if text.strip()]
    if not documents:
        raise InputError(f"{path} holds no text.")
    return documents


def stream_texts(path, text_field="text", separator="\n\n"):
    """The documents of `read_texts`, one in memory at a time.

    Args:
        path, text_field, separator: as of `read_texts`.

    Yields:
        strs. Records without a text, and files without a document, give "" or white space, so that
        they can be counted.

    Raises:
        InputError: as of `read_texts`, where the reading comes to it.
    """
    if is_name(path):
        yield from (text for (text,) in named_rows(path, [text_field]))
        return
    for file in text_files(pathlib.Path(path)):
        kind = kind_of(file)
        if kind == ".parquet":
            yield from (text for (text,) in read_parquet(file, [text_field]))
        elif kind == ".jsonl":
            yield from _jsonl(file, text_field)
        else:
            yield from _documents(file, separator)


def rank(document, seed=0):
    """16 bytes by which documents are shuffled."""
    return hashlib.blake2b(f"{seed}\0{document}".encode(), digest_size=16).digest()


def shuffle_documents(documents, seed=0):
    """The distinct documents in an order that depends on each one's text and the seed alone.

    Args:
        documents: list of str.
        seed: int.

    Returns:
        A list of str without repeats. Adding documents never reorders those already there.
    """
    return sorted(set(documents), key=lambda document: rank(document, seed))


def split_documents(documents, held_out=0.1, seed=0):
    """Shuffle documents and split them into a training and a held-out list.

    Repeats are dropped, so no held-out text was trained on.

    Args:
        documents: list of str.
        held_out: float in (0, 1). The share of documents held out, at least one.
        seed: int. The same documents and seed give the same split, whatever their order.

    Returns:
        Two lists of str.

    Raises:
        InputError: if there are fewer than two distinct documents.
    """
    shuffled = shuffle_documents(documents, seed)
    count = held_out_count(len(shuffled), held_out)
    return shuffled[count:], shuffled[:count]


def held_out_count(count, held_out):
    """How many of `count` distinct documents are held out.

    Raises:
        InputError: if there are fewer than two, or `held_out` is not in (0, 1).
    """
    if not 0 < held_out < 1:
        raise InputError(f"`held_out` must be in (0, 1), got {held_out}.")
    if count < 2:
        raise InputError(f"at least 2 distinct documents are needed to hold some out, got {count}.")
    return min(max(1, round(held_out * count)), count - 1)


def split_rows(rows, held_out=0.1, seed=0, by=0):
    """Split rows into a training and a held-out list, rows with the same text on the same side.

    Args:
        rows: list of tuples of str.
        held_out: float in (0, 1). The share of distinct texts held out, at least one.
        seed: int. The same rows and seed give the same split, whatever their order.
        by: int. The place in a row of the text that keeps rows together, e.g. that of the passage
            of (question, passage, answer).

    Returns:
        Two lists of tuples, shuffled; rows with the same text stay next to each other.

    Raises:
        InputError: if there are fewer than two distinct texts.
    """
    together = {}
    for row in sorted(rows):
        together.setdefault(row[by], []).append(row)
    sides = split_documents(list(together), held_out, seed)
    return tuple([row for text in side for row in together[text]] for side in sides)


def _jsonl(file, field):
    for number, record in read_json_lines(file):
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            has = ", ".join(map(repr, record)) if isinstance(record, dict) else "no fields"
            raise InputError(f"{file}, line {number}: no text in field {field!r}; it has {has}.")
        yield checked_text(f"{file}, line {number}", field, value)


def _documents(file, separator):
    """What stands between separators, without blank stretches; "" if that is nothing."""
    lines, is_empty = utf8_lines(file), True
    for document in _parts(lines, separator) if separator else ["".join(lines)]:
        if document.strip():
            is_empty = False
            yield document
    if is_empty:
        yield ""


def _parts(lines, separator):
    """`"".join(lines).split(separator)`, a block in memory at a time."""
    rest, block, size = "", [], 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size > max(_BLOCK, len(rest)):  # doubling, so that a long document takes linear time
            *whole, rest = (rest + "".join(block)).split(separator)
            yield from whole
            block, size = [], 0
    yield from (rest + "".join(block)).split(separator)
