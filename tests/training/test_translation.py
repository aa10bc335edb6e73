"""Compare BLEU and chrF with their formulas."""

import collections
import math

import pytest

from keras_llm import training
from keras_llm.errors import InputError

TRANSLATIONS = ["the cat sat on the mat", "a dog ran home quickly today"]
REFERENCES = ["the cat sat on a mat", "the dog ran home very quickly today"]


def grams(items, n):
    return collections.Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def overlap(first, second, n):
    a, b = grams(first, n), grams(second, n)
    return sum((a & b).values()), sum(a.values()), sum(b.values())


def test_bleu_matches_formula():
    pairs = [(f.split(), w.split()) for f, w in zip(TRANSLATIONS, REFERENCES, strict=True)]
    logs = 0.0
    for n in range(1, 5):
        counts = [overlap(f, w, n) for f, w in pairs]
        logs += math.log(sum(c[0] for c in counts) / sum(c[1] for c in counts)) / 4
    lengths = [sum(len(side[i]) for side in pairs) for i in (0, 1)]
    penalty = min(0.0, 1 - lengths[1] / lengths[0])
    measures = training.evaluate_translations(TRANSLATIONS, REFERENCES)
    assert measures["bleu"] == pytest.approx(100 * math.exp(logs + penalty), rel=1e-6)
    assert "tok:13a" in measures["bleu_signature"] and "nc:6" in measures["chrf_signature"]


def test_chrf_matches_formula():
    totals = [[0, 0, 0] for _ in range(6)]
    for f, w in zip(TRANSLATIONS, REFERENCES, strict=True):
        for n in range(1, 7):
            for index, value in enumerate(overlap(f.replace(" ", ""), w.replace(" ", ""), n)):
                totals[n - 1][index] += value
    scores = []
    for shared, predicted, expected in totals:
        precision, recall = shared / predicted, shared / expected
        scores.append(5 * precision * recall / (4 * precision + recall))
    score = training.evaluate_translations(TRANSLATIONS, REFERENCES)["chrf"]
    assert score == pytest.approx(100 * sum(scores) / 6, rel=0.01)


def test_equal_chinese_texts_score_100():
    measures = training.evaluate_translations(["中文的句子是这样的"], ["中文的句子是这样的"], "zh")
    assert measures["bleu"] == pytest.approx(100) and measures["chrf"] == pytest.approx(100)


def test_invalid_arguments_raise_error():
    for arguments, message in (
        (([], []), "0 translations"),
        ((["a"], ["a", "b"]), "1 translations and 2"),
        ((["a"], ["a"], "klingon"), "klingon"),
    ):
        with pytest.raises(InputError, match=message):
            training.evaluate_translations(*arguments)
