"""Test packing of documents into batches, splits and text files."""

import gzip
import json

import numpy as np
import pytest

from keras_llm import data
from keras_llm.errors import InputError


class ByteTokenizer:
    """Map each byte to the id 10 + byte, so that packed ids are easy to check."""

    bos_id, eos_id = 1, 2

    def encode_batch(self, texts):
        return [[10 + b for b in text.encode()] for text in texts]


def stream(count=50):
    return data.encode_documents([f"document {i}" for i in range(count)], ByteTokenizer())


def batches(**options):
    options = {"sequence_length": 7, "batch_size": 4, "bos_id": 1, "pad_id": 0, **options}
    return [(x.numpy(), y.numpy()) for x, y in data.packed_dataset(stream(), **options)]


def test_documents_are_encoded_as_one_stream():
    ids = data.encode_documents(["ab", "c"], ByteTokenizer())
    assert ids.tolist() == [1, 107, 108, 2, 1, 109, 2]
    assert ids.dtype == np.int32
    with pytest.raises(InputError, match="no document"):
        data.encode_documents([], ByteTokenizer())


def test_windows_are_consecutive_and_targets_shifted_by_one():
    ids = stream()
    steps = data.steps_per_epoch(ids, 7, 4)
    packed = batches()
    assert len(packed) == steps == (len(ids) - 1) // 7 // 4
    inputs = np.concatenate([x for x, _ in packed]).reshape(-1)
    targets = np.concatenate([y for _, y in packed]).reshape(-1)
    np.testing.assert_array_equal(inputs, ids[: len(inputs)])
    expected = ids[1 : len(targets) + 1]
    np.testing.assert_array_equal(targets, np.where(expected == 1, 0, expected))


def test_seed_shuffles_windows_differently_in_each_epoch():
    plain = {tuple(row) for x, _ in batches(batch_size=1) for row in x}
    first = batches(batch_size=1, seed=3, epochs=2)
    again = batches(batch_size=1, seed=3, epochs=2)
    other = batches(batch_size=1, seed=4, epochs=2)
    rows = [tuple(x[0]) for x, _ in first]
    half = len(rows) // 2
    assert rows == [tuple(x[0]) for x, _ in again]
    assert rows != [tuple(x[0]) for x, _ in other]
    assert rows[:half] != rows[half:]
    assert set(rows[:half]) == set(rows[half:]) == plain
    assert rows[:half] == [tuple(x[0]) for x, _ in batches(batch_size=1, seed=3)]


def test_too_little_text_raises_error():
    with pytest.raises(InputError, match="too few"):
        batches(sequence_length=600)


def test_split_documents_has_no_overlap():
    documents = [f"document {i}" for i in range(200)] + ["document 7"] * 20
    train, held_out = data.split_documents(documents, held_out=0.1, seed=1)
    assert len(held_out) == 20 and len(train) == 180
    assert set(train) | set(held_out) == set(documents)
    assert not set(train) & set(held_out)
    assert data.split_documents(documents[::-1], 0.1, 1) == (train, held_out)
    assert data.split_documents(documents, 0.1, 2)[1] != held_out
    assert len(data.split_documents(["a", "b"], 0.9)[0]) == 1
    with pytest.raises(InputError, match="2 distinct"):
        data.split_documents(["a", "a"])
    with pytest.raises(InputError, match="held_out"):
        data.split_documents(documents, held_out=1.0)


def test_text_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline\n\ntwo\n\n\n\n  \n\nthree 中文", "utf-8")
    assert data.read_texts(tmp_path / "a.txt") == ["one\nline", "two", "three 中文"]
    assert len(data.read_texts(tmp_path / "a.txt", separator="")) == 1
    records = [{"text": "x\u2028y"}, {"text": "z", "more": 1}]
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    (tmp_path / "b.jsonl").write_text(lines + "\n\n", "utf-8")
    assert data.read_texts(tmp_path / "b.jsonl") == ["x\u2028y", "z"]
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert data.read_texts(tmp_path) == ["one\nline", "two", "three 中文", "x\u2028y", "z"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000", " \f"])
def test_newlines_and_blank_lines_of_any_kind(tmp_path, newline, blank):
    lines = ["one", " line", blank, "two", blank, "three"]
    (tmp_path / "a.txt").write_bytes(newline.join(lines).encode())
    documents = ["one\n line", "two", "three"]
    assert data.read_texts(tmp_path / "a.txt") == documents
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(newline.join([*lines, "", ""]).encode()))
    assert data.read_texts(tmp_path / "a.txt.gz", separator=newline * 2) == documents
    (whole,) = data.read_texts(tmp_path / "a.txt", separator="")
    assert whole == "\n".join(lines)
    (tmp_path / "a.txt").write_bytes(newline.join(["a", "---", " ", "b"]).encode())
    assert data.read_texts(tmp_path / "a.txt", separator=f"{newline}---{newline}") == ["a", " \nb"]
    (tmp_path / "a.jsonl").write_bytes(
        newline.join(['{"text": "x"}', blank, '{"text": "y\\r\\nz"}']).encode()
    )
    assert data.read_texts(tmp_path / "a.jsonl") == ["x", "y\r\nz"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b"good\rbad\r\n\xff", r"a\.txt, line 2: not UTF-8"),
        ("a.txt", b" \n\n ", "no text"),
        ("a.txt", b"good\nbad \xff", r"a\.txt, line 2: not UTF-8 \(byte 0xff at offset 9\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "x"}', r"a\.jsonl, line 3: no text in field"),
        ("a.jsonl", b'["text"]', r"a\.jsonl, line 1: no text in field"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, line 1: no text in field"),
    ],
)
def test_invalid_files_raise_error_with_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        data.read_texts(tmp_path / name)


def test_missing_files_and_empty_folders_raise_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.txt does not exist"):
        data.read_texts(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match=r"has no \.txt, \.jsonl, \.parquet"):
        data.read_texts(tmp_path)
