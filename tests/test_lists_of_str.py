"""Test that a single str is refused wherever a list of str is due."""

import numpy as np
import pytest

from keras_llm import checkpoints, data, tokenizers, training
from keras_llm.data import contamination, without_near_duplicates
from keras_llm.errors import InputError

TOKENIZERS = {
    "byte_pair": tokenizers.BytePair.train(["once upon a time"] * 5, 270),
    "word_piece": tokenizers.WordPiece.train(["once upon a time"] * 5, 90),
    "sentencepiece": tokenizers.SentencePiece.train(["once upon a time"] * 9, 275, "bpe"),
}
VECTORS = np.zeros((3, 2))
CALLS = {
    "texts": [
        *(tok.encode_batch for tok in TOKENIZERS.values()),
        lambda text: TOKENIZERS["byte_pair"].encode_batch(text, parse_special=True),
        lambda text: TOKENIZERS["sentencepiece"].encode_batch(text, parse_special=True),
        without_near_duplicates,
    ],
    "documents": [
        lambda text: data.encode_documents(text, TOKENIZERS["byte_pair"]),
        data.split_documents,
        lambda text: data.sentence_pairs(text, TOKENIZERS["word_piece"], 16),
    ],
    "train": [lambda text: contamination(text, ["abc"])],
    "held_out": [lambda text: contamination(["abc"], text)],
    "summaries": [lambda text: training.evaluate_summaries(text, ["a", "b", "c"])],
    "translations": [lambda text: training.evaluate_translations(text, ["a", "b", "c"])],
    "answers": [lambda text: training.evaluate_answers(text, ["a", "b", "c"])],
    "references": [
        lambda text: training.evaluate_summaries(["a", "b", "c"], text),
        lambda text: training.evaluate_translations(["a", "b", "c"], text),
        lambda text: training.evaluate_answers(["a", "b", "c"], text),
    ],
    "words": [
        lambda text: training.evaluate_analogies(VECTORS, text, []),
        lambda text: training.evaluate_similarities(VECTORS, text, []),
        lambda text: checkpoints.write_glove("vectors.txt", VECTORS, text),
    ],
    "special_tokens": [
        lambda text: tokenizers.BytePair.train(["a"], 300, special_tokens=text),
        lambda text: tokenizers.WordPiece.train(["a"], 300, special_tokens=text),
        lambda text: tokenizers.BytePair({"a": 0, "b": 1, "c": 2}, [], special_tokens=text),
        lambda text: tokenizers.WordPiece(["[UNK]", "a", "b", "c"], special_tokens=text),
    ],
    "lstrip": [
        lambda text: tokenizers.BytePair({"a": 0, "b": 1, "c": 2}, [], lstrip=text),
    ],
}


@pytest.mark.parametrize(
    "name, call",
    [(name, call) for name, calls in CALLS.items() for call in calls],
)
def test_single_str_raises_error(name, call):
    with pytest.raises(InputError, match=f"`{name}` must be a list of str, got a single str"):
        call("abc")


@pytest.mark.parametrize(
    "name, call",
    [(name, call) for name, calls in CALLS.items() for call in calls if name != "special_tokens"],
)
def test_other_than_list_raises_error(name, call):
    for value, kind in ((None, "NoneType"), (3, "int")):
        with pytest.raises(InputError, match=f"`{name}` must be a list of str, got {kind}"):
            call(value)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_than_str_raises_error(name):
    with pytest.raises(InputError, match="`texts` 1 must be a str, got int"):
        TOKENIZERS[name].encode_batch(["abc", 3])
