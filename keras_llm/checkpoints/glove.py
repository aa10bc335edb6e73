"""Read and write word vectors as text, one word and its numbers per line."""

import array
import pathlib
from collections.abc import Sequence

import numpy as np

from keras_llm.errors import InputError, require_list
from keras_llm.files import atomic_file
from keras_llm.types import PathLike


def read_glove(path: PathLike) -> tuple[np.ndarray, list[str]]:
    """Read word vectors in the text format of GloVe or word2vec.

    Each line has a word and D numbers, separated by single spaces. A word may contain spaces; the
    last D fields are its numbers. A first line of two integers is the header of word2vec, the
    number of words and D, and is checked.

    Args:
        path: str or path of a UTF-8 file.

    Returns:
        A float32 array (V, D), and a list of V str.

    Raises:
        InputError: if a line has a wrong number of fields, a value that is not a finite number, or
            a repeated word; the message names the file and the line. Also if there is no vector.

    Reference:
        Pennington et al., 2014, "GloVe: Global Vectors for Word Representation".
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    words: dict[str, int] = {}
    numbers, size, head = array.array("f"), None, None
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            fields = line.rstrip(b" \r\n").split(b" ")
            if number == 1 and len(fields) == 2 and all(map(_is_count, fields)):
                head = [int(f) for f in fields]
                size = head[1]
                continue
            if size is None:
                size = _count_numbers(fields)
            if size < 1 or len(fields) <= size:
                raise InputError(
                    f"{where}: expected a word and {size or 'some'} numbers, got {len(fields)} "
                    f"field{'s' * (len(fields) != 1)}."
                )
            word = _decode(b" ".join(fields[:-size]), where)
            if not word:
                raise InputError(f"{where}: the word is empty.")
            if word in words:
                raise InputError(f"{where}: the word {word!r} is also on line {words[word]}.")
            words[word] = number
            try:
                numbers.extend(map(float, fields[-size:]))
            except ValueError as error:
                raise InputError(f"{where}: {error}.") from None
            if len(fields) > size + 1 and _is_number(fields[-size - 1]):
                raise InputError(f"{where}: expected {size} numbers, got {_count_numbers(fields)}.")
    if not words or size is None:
        raise InputError(f"{path} has no word vectors.")
    if head and head[0] != len(words):
        raise InputError(f"{path}: line 1 announces {head[0]} words, but there are {len(words)}.")
    table = np.frombuffer(numbers, "float32").reshape(len(words), size)
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise InputError(f"{path}, line {list(words.values())[row]}: not a finite number.")
    return table, list(words)


def write_glove(
    path: PathLike, table: np.ndarray, words: Sequence[str], overwrite: bool = False
) -> None:
    """Write word vectors in GloVe's text format.

    Args:
        path: str or path.
        table: float array (V, D).
        words: list of V str without line breaks.
        overwrite: bool. Whether to replace an existing file.

    Raises:
        InputError: if `path` exists and `overwrite` is False, or the numbers of words and vectors
            differ.
    """
    require_list("words", words)
    if len(table) != len(words):
        raise InputError(
            f"write_glove: `table` and `words` must have the same length, got {len(table)} vectors "
            f"and {len(words)} words."
        )
    with atomic_file(path, overwrite) as partial, open(partial, "w", encoding="utf-8") as file:
        for word, row in zip(words, np.asarray(table, "float32"), strict=True):
            file.write(f"{word} {' '.join(format(value, '.8g') for value in row)}\n")


def _count_numbers(fields):
    """Count the numbers at the end; the first field always belongs to the word."""
    count = 0
    while count < len(fields) - 1 and _is_number(fields[-1 - count]):
        count += 1
    return count


def _is_count(field):
    return field.isdigit() and len(field) < 20


def _is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


def _decode(word, where):
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where}: the word is not UTF-8.") from None
