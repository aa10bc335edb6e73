"""Test reading of Parquet files, written by pyarrow."""

import sys

import pyarrow
import pytest
from pyarrow import parquet

from keras_llm import data
from keras_llm.errors import InputError


def write(path, **columns):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_rows_and_documents_match_table(tmp_path):
    texts = [f"document {i} 中文" for i in range(7)]
    write(tmp_path / "a.parquet", text=texts, stars=list(range(7)), good=[True] * 7)
    rows = data.read_records(tmp_path / "a.parquet", ["text", "stars", "good"])
    assert rows == [(text, str(i), "true") for i, text in enumerate(texts)]
    (tmp_path / "b.txt").write_text("from a text file")
    assert data.read_texts(tmp_path) == [*texts, "from a text file"]


def test_unreadable_files_raise_error(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", text=["x", None, "y"])
    with pytest.raises(InputError, match=r"a\.parquet, row 2: no text in column 'text'"):
        data.read_texts(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'label'; it has 'text'"):
        data.read_records(tmp_path / "a.parquet", ["label"])
    truncated = (tmp_path / "a.parquet").read_bytes()[:-9]
    (tmp_path / "truncated.parquet").write_bytes(truncated)
    with pytest.raises(InputError, match=r"truncated\.parquet is not a complete Parquet file"):
        data.read_texts(tmp_path / "truncated.parquet")
    with pytest.raises(InputError, match=r"none\.parquet does not exist"):
        data.read_texts(tmp_path / "none.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        data.read_texts(tmp_path / "a.parquet")
