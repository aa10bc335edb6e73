"""Compare ROUGE with its formulas."""

from collections import Counter

import pytest

from keras_llm import training
from keras_llm.errors import InputError

PAIRS = [
    ("the cat sat on the mat", "a cat sat down on the mat today"),
    ("rain fell all day", "it rained"),
    ("the same words", "the same words"),
]


def f1(overlap, predicted, expected):
    return 2 * overlap / (predicted + expected) if overlap else 0.0


def n_gram_f1(summary, reference, n):
    grams = [
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for words in (summary.split(), reference.split())
    ]
    return f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def longest_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def test_rouge_matches_mean_f1():
    summaries, references = zip(*PAIRS, strict=True)
    measures = training.evaluate_summaries(list(summaries), list(references), stemming=False)
    for n in (1, 2):
        expected = sum(n_gram_f1(*pair, n) for pair in PAIRS) / len(PAIRS)
        assert measures[f"rouge{n}"] == pytest.approx(expected)
    words = [(summary.split(), reference.split()) for summary, reference in PAIRS]
    expected = sum(f1(longest_common(a, b), len(a), len(b)) for a, b in words) / len(PAIRS)
    assert measures["rougeL"] == pytest.approx(expected)
    stemmed = training.evaluate_summaries(["rain fell"], ["rains fell"])
    assert stemmed["rouge1"] == 1.0


def test_lists_of_different_length_raise_error():
    with pytest.raises(InputError, match="1 summaries and 2 references"):
        training.evaluate_summaries(["a"], ["b", "c"])
    with pytest.raises(InputError, match="at least 1"):
        training.evaluate_summaries([], [])
