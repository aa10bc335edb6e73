"""Test streamed corpora: documents, ids and batches match those of corpora in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data, tokenizers, training
from keras_llm.data.readers import text as text_module
from keras_llm.errors import InputError
from keras_llm.recipes import text_generation
from keras_llm.recipes.common import corpus

TEXTS = [f"a film about {word} and people, part {i}" for i, word in
         enumerate(["music", "stories", "trains", "letters"] * 50)]  # fmt: skip


@pytest.fixture(scope="module")
def tok():
    return tokenizers.WordPiece.train(TEXTS, 120)


@pytest.fixture(scope="module")
def on_disk(tok, tmp_path_factory):
    return data.encode_documents(TEXTS, tok, tmp_path_factory.mktemp("ids") / "ids.npy")


@given(st.text("ab\n", max_size=60), st.integers(1, 9), st.sampled_from(["\n\n", "\n", "a\nb"]))
def test_streamed_parts_match_text_split(text, block, separator):
    lines = text.splitlines(keepends=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_BLOCK", block)
        assert list(text_module._parts(lines, separator)) == text.split(separator)


@pytest.mark.parametrize("limit", [None, 900, 1])
def test_split_stream_matches_split_documents(limit):
    corpus = [*TEXTS, "", TEXTS[3], " \n", TEXTS[7], TEXTS[3]]
    documents = data.shuffle_documents(TEXTS, 5)
    if limit is not None:
        sizes = np.cumsum([len(text.encode()) for text in documents])
        documents = documents[: max(2, int(np.sum(sizes <= limit)))]
    train, held_out = data.split_documents(documents, 0.2, 5)
    split = data.split_stream(lambda: iter(corpus), 0.2, 5, limit)
    assert set(split[0]) == set(train) and set(split[1]) == set(held_out)
    assert len(split[0]) == len(train) and len(list(split[0])) == len(train)
    assert list(split[0]) == [text for text in TEXTS if text in set(train)]
    over_limit = {"beyond the limit": len(TEXTS) - len(documents)} if limit else {}
    assert split[2] == {"empty": 2, "repeated": 3, **over_limit}
    again = data.split_stream(lambda: iter(corpus[::-1]), 0.2, 5, limit)
    assert set(again[1]) == set(held_out)
    assert again[0].fingerprint == split[0].fingerprint != split[1].fingerprint


def test_sample_is_bounded_and_spread_over_corpus():
    train, _, _ = data.split_stream(lambda: TEXTS, 0.1)
    sample = list(train.sample(1000))
    assert sum(len(text.encode()) for text in sample) in range(900, 1001)
    assert set(sample) < set(train) and len({TEXTS.index(text) // 50 for text in sample}) == 4
    assert len(list(train.sample(1))) == 1


def test_invalid_streams_raise_error():
    with pytest.raises(InputError, match="2 distinct"):
        data.split_stream(lambda: ["a", "a", ""])
    with pytest.raises(InputError, match="2 distinct"):
        data.split_stream(list)
    corpus = ["a", "b", "c"]
    train, _, _ = data.split_stream(lambda: corpus, 0.3)
    for change in (corpus.pop, lambda: corpus.extend("xy")):
        change()
        with pytest.raises(
            InputError, match=r"the data has changed: it has \d documents instead of 3"
        ):
            list(train)


def test_ids_on_disk_match_ids_in_memory(tok, on_disk, tmp_path):
    ids = data.encode_documents(TEXTS, tok)
    np.testing.assert_array_equal(on_disk, ids)
    assert isinstance(on_disk, np.memmap) and on_disk.dtype == np.uint16
    assert not on_disk.flags.writeable
    np.testing.assert_array_equal(np.load(on_disk.filename), ids)
    with pytest.raises(InputError, match="exists"):
        data.encode_documents(TEXTS, tok, on_disk.filename)

    class LargeVocabularyTokenizer:
        bos_id, eos_id, vocabulary_size = 1, 2, 100_000

        def encode_batch(self, texts):
            return [[99_999] for _ in texts]

    large_ids = data.encode_documents(["a"], LargeVocabularyTokenizer(), tmp_path / "large.npy")
    assert large_ids.dtype == np.uint32 and large_ids.tolist() == [1, 99_999, 2]


def test_failed_encoding_leaves_no_file(tok, tmp_path):
    def failing_documents():
        yield from TEXTS
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        data.encode_documents(failing_documents(), tok, tmp_path / "ids.npy")
    with pytest.raises(InputError, match="no document"):
        data.encode_documents([], tok, tmp_path / "ids.npy")
    assert list(tmp_path.iterdir()) == []


def test_batches_from_disk_match_batches_from_memory(tok, on_disk):
    ids = np.asarray(on_disk, "int32")
    shape = {"sequence_length": 16, "batch_size": 4, "bos_id": tok.bos_id, "pad_id": tok.pad_id}
    seeded = {"epochs": 2, "seed": 3}
    for make in (
        lambda x: data.packed_dataset(x, **shape, **seeded, segments=True),
        lambda x: data.packed_dataset(x, **shape, **seeded, start=7),
        lambda x: data.masked_dataset(x, tok, 16, 4, **seeded),
        lambda x: data.span_corruption_dataset(
            x, range(5, 9), **shape, eos_id=tok.eos_id, **seeded
        ),
        lambda x: data.infilling_dataset(x, (5, 6, 7), **shape, eos_id=tok.eos_id, **seeded),
    ):
        in_memory, from_disk = make(ids), make(on_disk)
        assert (
            len(in_memory) == len(from_disk) > 20
            and in_memory.element_spec == from_disk.element_spec
        )
        for expected, actual in zip(
            in_memory.skip(5).take(9), from_disk.skip(5).take(9), strict=True
        ):
            flat = [np.concatenate([np.ravel(v) for v in _leaves(x)]) for x in (expected, actual)]
            np.testing.assert_array_equal(*flat)


def _leaves(batch):
    import tensorflow as tf

    return [tensor.numpy() for tensor in tf.nest.flatten(batch)]


def test_measures_do_not_depend_on_chunk_size(tok, on_disk, monkeypatch):
    def measures():
        ids = np.asarray(on_disk, "int32")
        texts = [ids[i : i + 9].tolist() for i in (0, 50, 333)] + [[7] * 9]
        size = tok.vocabulary_size
        return (
            training.evaluate_unigram(on_disk, ids[:99], 100, tok.bos_id, size),
            training.memorization_rate(texts, on_disk, 8),
        )

    expected = measures()
    assert 0.5 < expected[1] < 1
    monkeypatch.setattr("keras_llm.training.metrics.language_model._CHUNK", 7)
    monkeypatch.setattr("keras_llm.training.metrics.ngrams._CHUNK", 7)
    assert measures() == expected


def test_resumed_run_reuses_token_file(text_folder, tmp_path):
    options = text_generation.Options(str(tmp_path / "run"), data=str(text_folder), stream=True)
    train, _, _ = corpus.prepared(options)
    tok = tokenizers.SentencePiece.train(corpus.sample(options, train), 400, "bpe")
    ids = corpus.token_ids(options, train, tok)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    np.testing.assert_array_equal(corpus.token_ids(options, train, tok), ids)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(ids, data.encode_documents(train, tok))
    other = tokenizers.SentencePiece.train(TEXTS, 300, "bpe")
    assert len(corpus.token_ids(options, train, other)) != len(ids)
    assert len(list(tmp_path.iterdir())) == 2
    corpus.remove_token_files(options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "--stream must be off without --data"),
        ({"data": "x", "near_duplicates": 0.8}, "--near-duplicates must be 0 with --stream"),
    ],
)
def test_invalid_streaming_options_raise_error(changes, message):
    with pytest.raises(InputError, match=message):
        text_generation.Options("out", stream=True, **changes)
