"""Test all readers on damaged and invalid files: errors name the file and the line."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from keras_llm import data
from keras_llm.errors import InputError


def read_texts(path):
    return data.read_texts(path)


def read_rows(path):
    return data.read_records(path, ["text", "label"])


def read_conversations(path):
    return data.read_conversations(path)


def read_preferences(path):
    return data.read_preferences(path)


CONVERSATION = {
    "messages": [{"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "Yes"}]
}
PREFERENCE = {"instruction": "Say é", "chosen": "é", "rejected": "e"}
RECORD = {"text": "é", "label": "1"}


def json_lines(record, count=3):
    return "\n".join([json.dumps(record, ensure_ascii=False)] * count)


# Reader, file name, and a text that the reader accepts.
VALID_FILES = {
    "text": (read_texts, "a.txt", "one é\n\ntwo é\n\nthree é"),
    "documents": (read_texts, "a.jsonl", json_lines(RECORD)),
    "csv": (read_rows, "a.csv", "text,label\né,1\né,2\né,3"),
    "tsv": (read_rows, "a.tsv", "text\tlabel\né\t1\né\t2\né\t3"),
    "records": (read_rows, "a.jsonl", json_lines(RECORD)),
    "conversations": (read_conversations, "a.jsonl", json_lines(CONVERSATION)),
    "conversations in a list": (
        read_conversations,
        "a.json",
        f"[{json_lines(CONVERSATION)}]".replace("\n", ",\n"),
    ),
    "preferences": (read_preferences, "a.jsonl", json_lines(PREFERENCE)),
}
ENCODINGS = {
    "latin-1 in the middle": (
        lambda text: text.encode()[: text.encode().rindex("é".encode())] + b"\xe9\xe9",
        r"line \d+: not UTF-8 \(byte 0xe9 at offset \d+\)",
    ),
    "UTF-16": (
        lambda text: text.encode("utf-16"),
        r"line 1: not UTF-8 \(byte 0xff at offset 0; it begins like UTF-16\)",
    ),
    "UTF-16 without a BOM": (
        lambda text: text.replace("é", "e").encode("utf-16-le"),
        "line 1: a null character",
    ),
    "empty": (lambda text: b"", "has no|not JSON"),
    "blank": (lambda text: b"\n\n\n", "has no|not JSON"),
    "missing": (None, "does not exist"),
}
GZIP = {
    "cut": (lambda packed: packed[:-9], "is not a complete gzip file"),
    "corrupt": (
        lambda packed: packed[:20] + b"\0\0\0\0" + packed[24:],
        "is not a complete gzip file",
    ),
    "plain": (gzip.decompress, "is not a complete gzip file"),
}


@pytest.mark.parametrize("kind", VALID_FILES)
@pytest.mark.parametrize("damage", ENCODINGS)
def test_encodings_and_empty_files(tmp_path, kind, damage):
    read, name, text = VALID_FILES[kind]
    (tmp_path / name).write_text("\ufeff" + text, "utf-8")
    assert len(read(tmp_path / name)) == 3
    change, message = ENCODINGS[damage]
    (tmp_path / name).unlink()
    if change is not None:
        (tmp_path / name).write_bytes(change(text))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("kind", VALID_FILES)
@pytest.mark.parametrize("damage", GZIP)
def test_gzip(tmp_path, kind, damage):
    read, name, text = VALID_FILES[kind]
    packed = gzip.compress(text.encode())
    (tmp_path / f"{name}.gz").write_bytes(packed)
    assert len(read(tmp_path / f"{name}.gz")) == 3
    change, message = GZIP[damage]
    (tmp_path / f"{name}.gz").write_bytes(change(packed))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / f"{name}.gz")
    assert f"{name}.gz" in str(caught.value)


def corrupt_parquet(folder):
    parquet.write_table(pyarrow.table({"text": ["x" * 99], "label": ["1"]}), folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    return content[:9] + b"\xff" * 40 + content[49:]


@pytest.mark.parametrize(
    "read, name, content, message",
    [
        (read_texts, "a.jsonl", '{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        (read_texts, "a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: not JSON"),
        (read_conversations, "a.json", "[" * 100_000, r"a\.json: the JSON is nested too deeply"),
        (read_texts, "a.jsonl", '{"body": "x"}', r"line 1: no text in field 'text'; it has 'body'"),
        (read_texts, "a.jsonl", r'{"text": "\ud800"}', r"line 1: column 'text' is not text"),
        (
            read_rows,
            "a.jsonl",
            r'{"text": "\ud800", "label": 1}',
            "line 1: column 'text' is not text",
        ),
        (
            read_conversations,
            "a.jsonl",
            r'{"instruction": "\ud800", "output": "x"}',
            "line 1: .* is not text",
        ),
        (
            read_rows,
            "a.jsonl",
            '{"text": "x"}',
            r"line 1: no text in column 'label'; it has 'text'",
        ),
        (
            read_rows,
            "a.csv",
            "text,class\na,b",
            r"a\.csv, line 1: no column 'label'; it has 'text'",
        ),
        (read_rows, "a.tsv", "text\tlabel\na\tb\nc", r"a\.tsv, line 3: 1 fields, .* 2 columns"),
        (read_rows, "a.tsv", "text\tlabel\na\tb\tc", r"a\.tsv, line 2: 3 fields, .* 2 columns"),
        (read_rows, "a.csv", 'text,label\na,b\n"c', r"a\.csv, line 3: unexpected end"),
        (
            read_conversations,
            "a.jsonl",
            '{"messages": []}',
            r"a\.jsonl, line 1: the conversation is empty",
        ),
        (
            read_conversations,
            "a.json",
            '[{"instruction": "x", "output": " "}]',
            "record 1: 'output' is empty",
        ),
        (read_conversations, "a.json", "[\n{]", r"a\.json, line 2: not JSON"),
        (
            read_preferences,
            "a.jsonl",
            '{"instruction": "x", "chosen": "y"}',
            "line 1: no text in 'rejected'",
        ),
        (read_texts, "a.parquet", corrupt_parquet, r"a\.parquet is not a complete Parquet file"),
        (read_rows, "a.parquet", b"", r"a\.parquet is not a complete Parquet file"),
        (read_rows, "a.txt", "x", r"a\.txt: the name must end in"),
        (read_conversations, "a.csv", "x", r"a\.csv: the name must end in"),
    ],
)
def test_invalid_contents(tmp_path, read, name, content, message):
    content = content(tmp_path) if callable(content) else content
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_parallel_text_files(tmp_path):
    (tmp_path / "source.txt").write_text("one\n\nthree\n", "utf-8")
    (tmp_path / "target.txt").write_text("eins\r\nzwei\r\ndrei", "utf-8")
    records = data.read_records(tmp_path, ["source", "target"])
    assert records == [("one", "eins"), ("", "zwei"), ("three", "drei")]
    assert data.unread_files(tmp_path, ["source", "target"]) == []
    (tmp_path / "source.txt").write_text("one\ntwo\n", "utf-8")
    reports = r"the same number of lines, but .*source\.txt has 2, .*target\.txt has 3"
    with pytest.raises(InputError, match=reports):
        data.read_records(tmp_path, ["source", "target"])
    (tmp_path / "source.txt").unlink()
    with pytest.raises(InputError, match=r"source\.txt does not exist"):
        data.read_records(tmp_path, ["source", "target"])


def test_unread_files_of_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "in/b.txt.gz", "c.md", ".hidden", "in/d.csv"):
        content = gzip.compress(b"text") if name.endswith("gz") else b"text"
        (tmp_path / name).write_bytes(content)
    assert data.read_texts(tmp_path) == ["text", "text"]
    assert data.unread_files(tmp_path) == [tmp_path / "c.md", tmp_path / "in" / "d.csv"]
    assert data.unread_files(tmp_path / "in", ["text"]) == [tmp_path / "in" / "b.txt.gz"]
    assert data.unread_files(tmp_path / "a.txt") == data.unread_files("hf:x:train") == []


def test_recipes_report_dropped_documents(tmp_path, capsys):
    from keras_llm.recipes import text_generation, translation
    from keras_llm.recipes.common import corpus

    records = [{"text": text} for text in ("a", "b", "", "b", "c", " ", "b")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "notes.md").write_text("no data")
    reports = []
    for stream in (False, True):
        options = text_generation.Options("out", data=str(tmp_path), stream=stream)
        train, held_out, report = corpus.prepared(options)
        assert sorted([*train, *held_out]) == ["a", "b", "c"]
        assert report["dropped"] == {"empty": 3, "repeated": 2}
        reports.append(capsys.readouterr().err)
    assert reports[0] == reports[1]
    assert "2 documents for training, 1 held out; dropped: 3 empty, 2 repeated" in reports[0]
    assert f"not read because of their names: 1 files of {tmp_path}, e.g. notes.md" in reports[0]
    (tmp_path / "pairs.tsv").write_text("source\ttarget\na\tb\n\tc\na\tb\nd\te\nf\tg\n")
    translation.rows(translation.Options("out", data=str(tmp_path / "pairs.tsv")))
    assert "dropped: 1 empty, 1 repeated" in capsys.readouterr().err


def test_missing_package_raises_error_with_install_command():
    from keras_llm.recipes.common import flags, runs

    with pytest.raises(InputError, match="this needs no_such_package: pip install no_such_package"):
        runs.prepare(flags.Options("out"), "no_such_package", pictures=False)
