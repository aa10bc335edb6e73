import numpy as np
import pytest

from keras_llm.checkpoints import read_glove
from keras_llm.errors import InputError


def write_vectors(tmp_path, text):
    path = tmp_path / "vectors.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_words_and_vectors(tmp_path):
    table, words = read_glove(write_vectors(tmp_path, "the 0.5 -1 2e-3\nä 1 2 3\n"))
    assert words == ["the", "ä"]
    assert table.dtype == "float32"
    np.testing.assert_array_equal(table, np.array([[0.5, -1, 2e-3], [1, 2, 3]], "float32"))


def test_random_vectors_round_trip(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
    lines = [f"w{i} " + " ".join(map(repr, row.tolist())) for i, row in enumerate(numbers)]
    table, words = read_glove(write_vectors(tmp_path, "\n".join(lines)))
    assert words == [f"w{i}" for i in range(500)]
    np.testing.assert_array_equal(table, numbers)


def test_words_with_spaces(tmp_path):
    table, words = read_glove(write_vectors(tmp_path, "a 1 2\n. . . 3 4\nat name@domain.com 5 6\n"))
    assert words == ["a", ". . .", "at name@domain.com"]
    np.testing.assert_array_equal(table, [[1, 2], [3, 4], [5, 6]])


def test_header_line_with_sizes(tmp_path):
    table, words = read_glove(write_vectors(tmp_path, "2 3\r\na 1 2 3 \r\nb 4 5 6\r\n"))
    assert words == ["a", "b"] and table.shape == (2, 3)
    # The second line of a table of one column is not a header.
    assert read_glove(write_vectors(tmp_path, "a 1\n7 5\n"))[1] == ["a", "7"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a 1 2\nb 1\n", "line 2: expected a word and 2 numbers, got 2 fields"),
        ("a 1 2\nb 1 2 3\n", "line 2: expected 2 numbers, got 3"),
        ("a 1 2\nb 1 x\n", "line 2: .*b'x'"),
        ("a 1 2\nb 1 nan\n", "line 2: not a finite number"),
        ("a 1 2\nb 1e60 2\n", "line 2: not a finite number"),
        ("a 1 2\nb 1 2\na 3 4\n", "line 3: the word 'a' is also on line 1"),
        ("a 1 2\n 3 4\n", "line 2: the word is empty"),
        ("a 1 2\n\n", "line 2: expected a word and 2 numbers, got 1 field"),
        (b"a 1 2\n\xff 3 4\n", "line 2: the word is not UTF-8"),
        ("3 2\na 1 2\n", "line 1 announces 3 words, but there are 1"),
        ("only words\n", "line 1: expected a word and some numbers"),
        ("", "has no word vectors"),
        ("3 2\n", "has no word vectors"),
    ],
)
def test_invalid_files_raise_error_with_line(tmp_path, text, message):
    path = write_vectors(tmp_path, text)
    with pytest.raises(InputError, match=message) as error:
        read_glove(path)
    assert str(path) in str(error.value)


def test_missing_file_raises_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing.txt does not exist"):
        read_glove(tmp_path / "nothing.txt")
