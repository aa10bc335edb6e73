"""Where tokens and words stand in a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.tokenizers.words import word_spans

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
def test_offsets_lie_in_the_text_in_order(toks, name, text):
    tok = toks[name]
    ids, spans = tok.encode_with_offsets(text)
    assert ids == tok.encode(text) and len(ids) == len(spans)
    for start, end in spans:
        assert 0 <= start <= end <= len(text)
    assert spans == sorted(spans)
    if name not in ("word_piece", "cased"):  # nothing is left out
        covered = {i for start, end in spans for i in range(start, end)}
        assert covered == set(range(len(text)))


def test_a_token_is_of_the_text_at_its_place(toks):
    text = "The quick  brown fox"
    for tok in toks.values():
        for token, (start, end) in zip(*tok.encode_with_offsets(text), strict=True):
            spelled = tok.token(token).removeprefix("##").strip("Ġ▁")
            assert spelled in ("[UNK]", text[start:end].strip(), text[start:end].strip().lower())


def test_words():
    text = "  The parser's\tstate, été—日本 a+b \u200b🙂."
    words = [text[start:end] for start, end in word_spans(text)]
    assert words == [
        *("The", "parser", "'", "s", "state", ",", "été", "—", "日本", "a", "+", "b"),
        *("\u200b🙂", "."),
    ]
    assert word_spans("") == word_spans(" \n") == []


@given(st.text())
def test_words_leave_out_white_space_alone(text):
    spans = word_spans(text)
    covered = [i for start, end in spans for i in range(start, end)]
    assert covered == [i for i, character in enumerate(text) if not character.isspace()]
    assert all(start < end for start, end in spans)
