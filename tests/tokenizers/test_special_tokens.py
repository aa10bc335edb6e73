"""Test parsing of special tokens in text, in a graph and in Python."""

import functools

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import tokenizers

SPECIAL = ["<|im_start|>", "<|im_start", "<|im_end|>", "[INST]", "a.b"]
TEXTS = ["once upon a time there was <|im_start|> a cat [INST] a.b", "axb \n two  words"] * 20


@pytest.fixture(scope="module")
def toks():
    return {
        "byte_pair": tokenizers.BytePair.train(TEXTS, 400, special_tokens=SPECIAL),
        "word_piece": tokenizers.WordPiece.train(TEXTS, 120, special_tokens=SPECIAL[2:4]),
        "sentencepiece": tokenizers.SentencePiece.train(TEXTS, 320, "bpe"),
    }


@pytest.mark.parametrize("name", ["byte_pair", "word_piece", "sentencepiece"])
def test_graph_matches_python(toks, name):
    tok = toks[name]
    special = list(tok.special_tokens)
    parts = st.sampled_from([*special, "once", " ", "  \n", "<|im_", "end|>", "axb", "é", "🙂", ""])

    @functools.partial(tf.function, input_signature=[tf.TensorSpec([None], tf.string)])
    def both(texts):
        return tok.tokenize_prompt(texts, parse_special=True), tok.tokenize_prompt(texts)

    @given(st.lists(st.lists(parts, max_size=6).map("".join), min_size=1, max_size=4))
    def check(texts):
        expected = [tok.encode_prompt(text, parse_special=True) for text in texts]
        parsed, plain = both(tf.constant(texts))
        assert parsed.to_list() == expected
        assert plain.to_list() == [tok.encode_prompt(text) for text in texts]

    check()
