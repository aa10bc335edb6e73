"""Read documents from text files, JSONL and tables, and split off held-out documents."""

import hashlib
import pathlib
from collections.abc import Iterable, Iterator

from keras_llm.data.readers.named import is_name, named_rows
from keras_llm.data.readers.parquet import read_parquet
from keras_llm.data.readers.records import kind_of, read_json_lines, text_files
from keras_llm.data.readers.values import checked_text
from keras_llm.errors import InputError, require_list
from keras_llm.files import text_lines
from keras_llm.types import PathLike

_BLOCK = 1 << 20  # characters


def read_texts(path: PathLike, text_field: str = "text", separator: str = "\n\n") -> list[str]:
    """Read the documents of a file, a folder, or a named dataset.

    `.jsonl` files have one JSON object per line with the text in `text_field`, `.parquet` files
    one per row (this needs pyarrow). Any other file is UTF-8 text with documents separated by
    `separator`; Windows and old Mac newlines become line feeds. Names may end in `.gz`. In a
    folder, all `.txt`, `.jsonl` and `.parquet` files, also in subfolders, are read in order of
    name. `hf:NAME:SPLIT` and `tfds:NAME:SPLIT` are named datasets, see `read_records`. Documents
    that are only white space are dropped.

    Args:
        path: str or path.
        text_field: str. The field of a JSONL record, or the column of a table.
        separator: str. Blank lines, which may have white space, by default; "" reads a whole file
            as one document.

    Returns:
        A list of str.

    Raises:
        InputError: if a file is missing, not UTF-8 or not JSON, or has no such field; the message
            names the file and the line. Also if there is no text.
    """
    documents = [text for text in stream_texts(path, text_field, separator) if text.strip()]
    if not documents:
        raise InputError(f"{path} has no text.")
    return documents


def stream_texts(
    path: PathLike, text_field: str = "text", separator: str = "\n\n"
) -> Iterator[str]:
    """Yield the documents of `read_texts`, one in memory at a time.

    Args:
        path, text_field, separator: see `read_texts`.

    Yields:
        strs. Records without a text and files without a document yield "" or white space, so that
        they can be counted.

    Raises:
        InputError: see `read_texts`; raised when the iteration reaches the error.
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


def rank(document: str, seed: int = 0) -> bytes:
    """Compute a 16-byte sort key that shuffles documents."""
    return hashlib.blake2b(f"{seed}\0{document}".encode(), digest_size=16).digest()


def shuffle_documents(documents: Iterable[str], seed: int = 0) -> list[str]:
    """Shuffle the distinct documents in an order that depends only on each text and the seed.

    Args:
        documents: list of str.
        seed: int.

    Returns:
        A list of str without duplicates. Adding documents does not reorder the existing ones.

    Raises:
        InputError: if `documents` is a single str.
    """
    require_list("documents", documents)
    return sorted(set(documents), key=lambda document: rank(document, seed))


def split_documents(
    documents: Iterable[str], held_out: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Shuffle documents and split them into a training and a held-out list.

    Duplicates are dropped, so no held-out text is trained on.

    Args:
        documents: list of str.
        held_out: float in (0, 1). The share of documents held out, at least one.
        seed: int. The same documents and seed give the same split, in any order.

    Returns:
        Two lists of str.

    Raises:
        InputError: if there are fewer than two distinct documents.
    """
    shuffled = shuffle_documents(documents, seed)
    count = held_out_count(len(shuffled), held_out)
    return shuffled[count:], shuffled[:count]


def held_out_count(count: int, held_out: float) -> int:
    """Compute how many of `count` distinct documents are held out.

    Raises:
        InputError: if there are fewer than two, or `held_out` is not in (0, 1).
    """
    if not 0 < held_out < 1:
        raise InputError(f"`held_out` must be in (0, 1), got {held_out}.")
    if count < 2:
        raise InputError(f"at least 2 distinct documents are needed to hold some out, got {count}.")
    return min(max(1, round(held_out * count)), count - 1)


def split_rows(
    rows: Iterable[tuple[str, ...]], held_out: float = 0.1, seed: int = 0, by: int = 0
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Split rows into a training and a held-out list, keeping rows with the same text together.

    Args:
        rows: list of tuples of str.
        held_out: float in (0, 1). The share of distinct texts held out, at least one.
        seed: int. The same rows and seed give the same split, in any order.
        by: int. The column of the text that keeps rows together, e.g. that of the passage in
            (question, passage, answer).

    Returns:
        Two lists of tuples, shuffled; rows with the same text stay adjacent.

    Raises:
        InputError: if there are fewer than two distinct texts.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in sorted(rows):
        groups.setdefault(row[by], []).append(row)
    sides = split_documents(list(groups), held_out, seed)
    train, rest = ([row for text in side for row in groups[text]] for side in sides)
    return train, rest


def _jsonl(file, field):
    for number, record in read_json_lines(file):
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            has = ", ".join(map(repr, record)) if isinstance(record, dict) else "no fields"
            raise InputError(f"{file}, line {number}: no text in field {field!r}; it has {has}.")
        yield checked_text(f"{file}, line {number}", field, value)


def _documents(file, separator):
    """Yield the non-blank texts between separators; "" if there is none."""
    lines, is_empty = text_lines(file), True
    separator = separator.replace("\r\n", "\n").replace("\r", "\n")
    if len(separator) > 1 and not separator.strip("\n"):  # blank lines
        lines = ("\n" if line.isspace() else line for line in lines)
    for document in _parts(lines, separator) if separator else ["".join(lines)]:
        if document.strip():
            is_empty = False
            yield document
    if is_empty:
        yield ""


def _parts(lines, separator):
    """Yield `"".join(lines).split(separator)` with one block in memory at a time."""
    rest, block, size = "", [], 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size > max(_BLOCK, len(rest)):  # doubles, so that long documents take linear time
            *whole, rest = (rest + "".join(block)).split(separator)
            yield from whole
            block, size = [], 0
    yield from (rest + "".join(block)).split(separator)
