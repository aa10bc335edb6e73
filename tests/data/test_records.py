"""Test reading of tables; errors name the file and the line."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from keras_llm import data
from keras_llm.errors import InputError

ROWS = [("a, b\nsecond line", "1"), ('quoted "word" \t tab', "x y"), ("中文", "0")]


def test_csv_with_quoted_fields(tmp_path):
    path = tmp_path / "rows.csv"
    lines = ["label,note,text"]
    lines += [f'"{label}",n,"{text.replace(chr(34), chr(34) * 2)}"' for text, label in ROWS]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", "utf-8")
    assert data.read_records(path, ["text", "label"]) == ROWS
    assert data.read_records(path, ["label"]) == [(label,) for _, label in ROWS]


def test_tsv_fields_are_not_unquoted(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"one" two\tA\n\'\tB\n', "utf-8")
    assert data.read_records(tmp_path / "rows.tsv", ["text", "label"]) == [
        ('"one" two', "A"),
        ("'", "B"),
    ]


def test_jsonl_gzip_and_folders(tmp_path):
    records = [{"text": t, "label": label, "more": [1]} for t, label in ROWS]
    records += [{"text": "n", "label": 3}, {"text": "b", "label": True}]
    lines = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.csv").write_text("text,label\nfirst,0\n")
    (tmp_path / "notes.txt").write_text("no table")
    records_of_folder = data.read_records(tmp_path, ["text", "label"])
    assert records_of_folder == [("first", "0"), *ROWS, ("n", "3"), ("b", "true")]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_and_blank_lines_of_any_kind(tmp_path, newline):
    rows = [("a", "b"), ("c", "d")]
    for name, lines in (
        ("a.csv", [" ", "text,label", "a,b", "\t", "c,d", " "]),
        ("b.csv", [",", " , ", "text,label", "a,b", "c,d"]),
        ("a.tsv", [" ", "text\tlabel", "a\tb", "", "c\td", ""]),
        ("a.jsonl", ['{"text": "a", "label": "b"}', " ", '{"text": "c", "label": "d"}']),
    ):
        (tmp_path / name).write_bytes(newline.join(lines).encode())
        assert data.read_records(tmp_path / name, ["text", "label"]) == rows
    folder = tmp_path / "parallel"
    folder.mkdir()
    for name, column in zip(("text", "label"), zip(*rows, strict=True), strict=True):
        (folder / f"{name}.txt").write_bytes(newline.join(column).encode())
    assert data.read_records(folder, ["text", "label"]) == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", ["text", "label"])
def test_numbers_that_are_not_finite_are_missing_values(tmp_path, value, column):
    good = {"text": 1.5, "label": 2}
    records = [good, {**good, column: value}]
    message = f"column '{column}' must be text or a finite number, got {value}"
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(InputError, match=f"a.jsonl, line 2: {message}"):
        data.read_records(tmp_path / "a.jsonl", ["text", "label"])
    table = pyarrow.table({name: [float(r[name]) for r in records] for name in good})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"a.parquet, row 2: {message}"):
        data.read_records(tmp_path / "a.parquet", ["text", "label"])


def test_compressed_text_files(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    assert data.read_texts(tmp_path / "a.txt.gz") == ["one", "two"]
    assert data.read_texts(tmp_path / "b.jsonl.gz") == ["three"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", "has no record"),
        ("a.csv", b"text,label\n", "has no record"),
        ("a.csv", b"text,class\na,b", r"a\.csv, line 1: no column 'label'; it has 'text', 'class'"),
        ("a.csv", b"text,label,label\na,b,c", "line 1: several columns are named 'label'"),
        ("a.csv", b'text,label\na,b\n"c\nd",e\nf', r"a\.csv, line 5: 1 fields, .* 2 columns"),
        ("a.csv", b'text,label\na,b\n"c,d', r"a\.csv, line 3: unexpected end of data"),
        ("a.tsv", b"text\tlabel\na\tb\nc\td\te", r"a\.tsv, line 3: 3 fields"),
        ("a.csv", b"text,label\na,b\nc,\xe9", r"a\.csv, line 3: not UTF-8 \(byte 0xe9"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}',
            r"line 1: no text in column 'label'; it has 'text'",
        ),
        ("a.jsonl", b"\n[1]", r"a\.jsonl, line 2: not a JSON object"),
        ("a.txt", b"text", r"must end in \.csv, \.tsv, \.jsonl"),
        ("a.csv.gz", b"text,label", r"a\.csv\.gz is not a complete gzip file"),
        ("a.csv.gz", gzip.compress(b"text,label\na,b", mtime=0)[:-6], "not a complete gzip file"),
    ],
)
def test_invalid_files_raise_error_with_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        data.read_records(tmp_path / name, ["text", "label"])


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        data.read_records(tmp_path / "none.csv", ["text"])
    with pytest.raises(InputError, match=r"has no \.csv"):
        data.read_records(tmp_path, ["text"])


def test_clean_rows_counts_dropped_rows():
    rows = [("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"), ("", "1"), ("c", " "), ("a", "1")]
    kept, dropped = data.clean_rows(rows, unique=0)
    assert kept == [("a", "1"), ("b", "1")]
    assert dropped == {"repeated": 2, "repeated with another value": 1, "empty": 2}
    assert len(kept) + sum(dropped.values()) == len(rows)
    kept, dropped = data.clean_rows(rows)
    assert kept == [("a", "1"), ("b", "1"), ("a", "2")] and dropped == {"repeated": 2, "empty": 2}


def test_without_contamination_drops_held_out_rows():
    train = [("The  film", "1"), ("other", "0")]
    assert data.without_contamination(train, [("the film", "0")]) == (
        [("other", "0")],
        {"held out too": 1},
    )
    assert data.without_contamination(train, [("film", "0")]) == (train, {})


def test_split_rows_keeps_groups_together():
    rows = [(f"question {i}", f"passage {i % 40}") for i in range(200)]
    train, held_out = data.split_rows(rows, 0.25, seed=3, by=1)
    assert sorted(train + held_out) == sorted(rows) and len(held_out) == 50
    assert not {passage for _, passage in train} & {passage for _, passage in held_out}
    assert data.split_rows(rows[::-1], 0.25, seed=3, by=1) == (train, held_out)
    assert data.split_rows(rows, 0.25, seed=4, by=1)[1] != held_out
