"""Documents from text files and JSONL, and their split into training and held-out."""

import hashlib
import pathlib

from keras_llm.data.parquet import read_parquet
from keras_llm.data.records import read_json_lines
from keras_llm.errors import InputError
from keras_llm.files import read_utf8

_SUFFIXES = (".txt", ".jsonl", ".parquet")


def read_texts(path, text_field="text", separator="\n\n"):
    """Read the documents of a file or folder.

    `.jsonl` files hold one JSON object a line with the text in `text_field`, `.parquet` files a
    row with it (this needs pyarrow). Any other file is UTF-8 text whose documents are kept apart by
    `separator`. Of a folder, all `.txt`, `.jsonl` and `.parquet` files below it are read in order
    of name. Documents of white space alone are left out.

    Args:
        path: str or path.
        text_field: str. The field of a JSONL record, or the column of a Parquet file.
        separator: str. Blank lines by default; "" takes a whole file as one document.

    Returns:
        A list of str.

    Raises:
        InputError: naming the file (and line) that is missing, not UTF-8, not JSON, or has no
            such field; or if there is no text at all.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in _SUFFIXES and f.is_file())
        if not files:
            raise InputError(f"{path} holds no {', '.join(_SUFFIXES)} file.")
    else:
        files = [path]
    documents = []
    for file in files:
        if file.suffix == ".parquet":
            documents += (text for (text,) in read_parquet(file, [text_field]))
            continue
        text = read_utf8(file)
        if file.name.removesuffix(".gz").endswith(".jsonl"):
            documents += _jsonl(file, text, text_field)
        else:
            documents += text.split(separator) if separator else [text]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InputError(f"{path} holds no text.")
    return documents


def shuffle_documents(documents, seed=0):
    """The distinct documents in an order that depends on each one's text and the seed alone.

    Args:
        documents: list of str.
        seed: int.

    Returns:
        A list of str without repeats. Adding documents never reorders those already there.
    """

    def rank(document):
        return hashlib.blake2b(f"{seed}\0{document}".encode(), digest_size=16).digest()

    return sorted(set(documents), key=rank)


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
    if not 0 < held_out < 1:
        raise InputError(f"`held_out` must be in (0, 1), got {held_out}.")
    shuffled = shuffle_documents(documents, seed)
    if len(shuffled) < 2:
        raise InputError(
            f"at least 2 distinct documents are needed to hold some out, got {len(shuffled)}."
        )
    count = min(max(1, round(held_out * len(shuffled))), len(shuffled) - 1)
    return shuffled[count:], shuffled[:count]


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


def _jsonl(file, text, field):
    for number, record in read_json_lines(file, text):
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            raise InputError(f"{file}, line {number}: no text in field {field!r}.")
        yield value
