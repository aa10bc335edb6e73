"""Test round trips of any Unicode text, and that the graph matches Python."""

import functools
import gc
import pydoc_data.topics

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError

TEXT = """The quick brown fox jumps over the lazy dog. def f(x):\n\treturn x + 1\n
春眠不觉晓,处处闻啼鸟。夜来风雨声,花落知多少。 Où est-il ? Straße 🙂👩‍👩‍👧"""
UNIGRAM = {"files_or_iterable": [TEXT], "model_type": "unigram"}
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@functools.cache
def trained(model_type):
    texts = [*pydoc_data.topics.topics.values()][:20]
    return tokenizers.SentencePiece.train([TEXT, *texts], 500, model_type=model_type)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@given(UNICODE)
@example("")
@example("  two  spaces \n\n\ttab\r\n ")
@example("中文测试 emoji 🙂🇫🇷 e\u0301")
@example("\u2581 \u2581\u2581a\ue000 \ue000a\ue000b\ue000\ue000")
@example("<s></s><unk><pad><0x41>\x00\u2585\ufeff\ufffd")
def test_round_trip_in_python_and_graph(model_type, text):
    tok = trained(model_type)
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    in_graph = tok.tokenize(tf.constant([text, TEXT]))
    assert in_graph[0].numpy().tolist() == ids
    assert in_graph[1].numpy().tolist() == tok.encode(TEXT)
    assert [t.decode() for t in tok.detokenize(in_graph).numpy()] == [text, TEXT]


def test_special_ids_are_skipped_in_decoding():
    tok = trained("bpe")
    ids = tok.encode("fox")
    assert (tok.pad_id, tok.bos_id, tok.eos_id, tok.unk_id) == (0, 1, 2, 3)
    assert tok.decode([tok.bos_id, *ids, tok.eos_id, tok.pad_id, tok.pad_id]) == "fox"
    padded = np.array([[tok.bos_id, *ids, tok.eos_id, tok.pad_id]])
    assert tok.detokenize(padded).numpy()[0] == b"fox"


def test_encode_batch_matches_encode():
    tok = trained("unigram")
    texts = ["fox", "", "日本語 \u2581", TEXT]
    assert tok.encode_batch(texts) == [tok.encode(text) for text in texts]


def test_tf_data():
    tok = trained("bpe")
    data = tf.data.Dataset.from_tensor_slices([TEXT, "fox"]).batch(2).map(tok.tokenize)
    assert next(iter(data)).to_list() == [tok.encode(TEXT), tok.encode("fox")]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_training_is_deterministic_and_reads_files(model_type, tmp_path):
    path = tmp_path / "text.txt"
    text = TEXT + pydoc_data.topics.topics["assignment"]
    path.write_text(text, "utf-8")
    models = {
        tokenizers.SentencePiece.train(source, 400, model_type=model_type).model
        for source in (str(path), path, [path], text.split("\n\n"))
    }
    assert len(models) == 1


def test_more_characters_than_vocabulary_size():
    text = "".join(chr(c) for c in range(0x4E00, 0x5200)) + "的一是" * 30000
    tok = tokenizers.SentencePiece.train([text], vocabulary_size=320, model_type="bpe")
    assert tok.vocabulary_size == 320
    assert tok.decode(tok.encode(text)) == text
    assert len(tok.encode("的一是")) <= 3 and len(tok.encode("\u51fe\u51ff")) == 6  # bytes


def test_save_and_load(tmp_path):
    tok = trained("bpe")
    tok.save(tmp_path / "tokenizer")
    loaded = tokenizers.load(tmp_path / "tokenizer")
    assert loaded.encode(TEXT) == tok.encode(TEXT)
    assert loaded.vocabulary_size == tok.vocabulary_size == 500


@given(UNICODE)
@example("a🙂b\u2581c👩‍👩‍👧\ue000")
def test_decode_stream_keeps_characters_whole(text):
    tok = trained("bpe")
    ids = tok.encode(text)
    pieces = list(tok.decode_stream(iter(ids)))
    assert "".join(pieces) == text and all(pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_decode_stream_of_incomplete_character():
    tok = trained("bpe")
    ids = tok.encode("\U0001f9ff")  # not in any piece: encoded as four bytes
    assert len(ids) == 4
    assert list(tok.decode_stream(ids[:2])) == [tok.decode(ids[:2])]
    assert list(tok.decode_stream(ids)) == ["\U0001f9ff"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"files_or_iterable": []}, "no text"),
        ({"files_or_iterable": [TEXT], "vocabulary_size": 100}, "261"),
        (
            {"files_or_iterable": [TEXT], "model_type": "bpe", "vocabulary_size": 99999},
            "vocabulary_size.*set it to a value <=",
        ),
        ({**UNIGRAM, "vocabulary_size": 99999}, "set it to a value <="),
        ({"files_or_iterable": [TEXT], "model_type": "word"}, "model_type"),
        ({"files_or_iterable": "no/such/file.txt"}, "no/such/file.txt"),
    ],
)
def test_invalid_training_arguments_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        tokenizers.SentencePiece.train(**arguments)


def test_invalid_folders_raise_error(tmp_path):
    with pytest.raises(InputError, match="no tokenizer"):
        tokenizers.load(tmp_path)
    trained("bpe").save(tmp_path)
    (tmp_path / "sentencepiece.model").write_bytes(b"corrupt")
    with pytest.raises(InputError, match="SentencePiece"):
        tokenizers.load(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(InputError, match=r"sentencepiece\.model"):
        tokenizers.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="describe"):
        tokenizers.load(tmp_path)


def test_deleting_one_of_two_equal_tokenizers(tmp_path):
    tokenizers.SentencePiece.train(["once upon a time"] * 9, 275, "bpe").save(tmp_path)
    first, second = tokenizers.load(tmp_path), tokenizers.load(tmp_path)
    expected = [first.encode("upon")]
    assert first.tokenize(["upon"]).to_list() == second.tokenize(["upon"]).to_list() == expected
    del first
    gc.collect()
    assert second.tokenize(["upon"]).to_list() == expected


def test_tokenizer_works_after_clear_session():
    import keras

    tok = tokenizers.SentencePiece.train(["once upon a time"] * 9, 276, "bpe")
    in_graph = tf.function(tok.tokenize)
    expected = [tok.encode("upon")]
    assert in_graph(tf.constant(["upon"])).to_list() == expected
    keras.utils.clear_session()
    assert in_graph(tf.constant(["upon"])).to_list() == expected
    assert tok.tokenize(["upon"]).to_list() == expected
    assert tok.detokenize(tf.ragged.constant(expected)).numpy().tolist() == [b"upon"]


def test_graph_writes_nothing_to_stderr(capfd):
    tok = tokenizers.SentencePiece.train(["a line of text without a log"] * 9, 280, "bpe")
    tok.graph_resources()
    tok.tokenize(tf.constant(["a line"]))
    assert "LOG(INFO)" not in capfd.readouterr().err
