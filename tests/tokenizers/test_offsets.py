"""Test character offsets of tokens and words."""

import random

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers.graph import ragged
from keras_llm.tokenizers.word_segmentation import word_spans, word_spans_in_graph

TEXTS = [
    "The quick  brown fox, isn't it?",
    " leading and trailing ",
    "Ünïcödé façade — “quotes” …",
    "日本語 text と 🙂🙂 emoji",
    "tabs\tand\nlines\r\n",
    "\u2581 and \ue000 escaped\ue000a",
    "e\u0301 combined, \u1e9b\u0323",
    "x",
]

ALPHABET = "ab zé,.  \n\t-_9ß日語ﬁ🙂\u0301\u2581\ue000\u200d\xa0İ"
RANDOM_TEXTS = ["".join(random.Random(i).choices(ALPHABET, k=1 + i // 5)) for i in range(200)]


@pytest.fixture(scope="module")
def toks(text_folder):
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    return {
        "word_piece": tokenizers.WordPiece.train(texts, 400),
        "cased": tokenizers.WordPiece.train(texts, 400, lowercase=False),
        "byte_pair": tokenizers.BytePair.train(texts, 400),
        "llama3": tokenizers.BytePair.train(texts, 400, pre_tokenizer="llama3"),
        "unigram": tokenizers.SentencePiece.train(texts, 400),
        "bpe": tokenizers.SentencePiece.train(texts, 400, "bpe"),
    }


NAMES = ["word_piece", "cased", "byte_pair", "llama3", "unigram", "bpe"]


@pytest.mark.parametrize("name", NAMES)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_offsets_are_ordered_and_within_text(toks, name, text):
    tok = toks[name]
    ids, spans = tok.encode_with_offsets(text)
    assert ids == tok.encode(text) and len(ids) == len(spans)
    for start, end in spans:
        assert 0 <= start <= end <= len(text)
    assert spans == sorted(spans)
    if name not in ("word_piece", "cased"):  # these drop characters
        covered = {i for start, end in spans for i in range(start, end)}
        assert covered == set(range(len(text)))


ALL_TEXTS = [
    *TEXTS,
    "",
    "a" * 150 + " b",
    "x\x00y\u200d z\ufeff",
    "ﬁne ½ Ǆ İstanbul ΐ",
    *RANDOM_TEXTS,
]


@pytest.mark.parametrize("name", NAMES)
def test_graph_offsets_match_python(toks, name):
    tok = toks[name]
    results = tf.function(tok.tokenize_with_offsets)(tf.constant(ALL_TEXTS))
    for text, ids, starts, ends in zip(ALL_TEXTS, *(x.to_list() for x in results), strict=True):
        assert (ids, list(zip(starts, ends, strict=True))) == tok.encode_with_offsets(text), text


def test_graph_word_spans_match_python():
    words = [x.to_list() for x in word_spans_in_graph(tf.constant(ALL_TEXTS))]
    for text, starts, ends in zip(ALL_TEXTS, *words, strict=True):
        assert list(zip(starts, ends, strict=True)) == word_spans(text)


def test_unsupported_graph_offsets_raise_error(toks):
    tok = toks["byte_pair"]
    normalizing = tokenizers.BytePair(tok.vocabulary, tok.merges, normalization="NFC")
    with pytest.raises(InputError, match="normalizes"):
        normalizing.tokenize_with_offsets(tf.constant(["a"]))
    vocabulary = {token: i for i, token in enumerate([p for p in tok.vocabulary if p != "a"][:255])}
    with pytest.raises(InputError, match="drops bytes"):
        tokenizers.BytePair(vocabulary, []).tokenize_with_offsets(tf.constant(["a"]))


def test_tokens_match_text_at_offsets(toks):
    text = "The quick  brown fox"
    for tok in toks.values():
        for token, (start, end) in zip(*tok.encode_with_offsets(text), strict=True):
            piece = tok.token(token).removeprefix("##").strip("Ġ▁")
            assert piece in ("[UNK]", text[start:end].strip(), text[start:end].strip().lower())


def test_word_spans():
    text = "  The parser's\tstate, été—日本 a+b \u200b🙂."
    words = [text[start:end] for start, end in word_spans(text)]
    assert words == [
        *("The", "parser", "'", "s", "state", ",", "été", "—", "日本", "a", "+", "b"),
        *("\u200b🙂", "."),
    ]
    assert word_spans("") == word_spans(" \n") == []


@given(st.text())
def test_word_spans_skip_only_whitespace(text):
    spans = word_spans(text)
    covered = [i for start, end in spans for i in range(start, end)]
    assert covered == [i for i, character in enumerate(text) if not character.isspace()]
    assert all(start < end for start, end in spans)


def test_values_are_repeated_and_selected_in_memory_of_the_result():
    """`tf.repeat` would allocate the number of values times the largest count, 3.6 billion."""
    for counts in ([60_000] + [1] * 59_998 + [0], [0, 2, 0, 1], [0], []):
        values = tf.range(len(counts))
        repeated = ragged.repeat(values, tf.constant(counts, tf.int64))
        assert repeated.numpy().tolist() == np.repeat(values.numpy(), counts).tolist()
        parts = tf.RaggedTensor.from_row_lengths(repeated, tf.constant(counts, tf.int64))
        even = ragged.select(parts, repeated % 2 == 0)
        kept = [count * (1 - index % 2) for index, count in enumerate(counts)]
        assert even.row_lengths().numpy().tolist() == kept
        assert even.values.numpy().tolist() == np.repeat(values.numpy(), kept).tolist()
