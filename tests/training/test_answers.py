"""Compare exact match and F1 with a slow count of shared words and with hand-computed values."""

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import training
from keras_llm.errors import InputError


def normalized_words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def slow_f1(answer, reference):
    """Compute F1 by matching equal words, each used once."""
    predicted, remaining = normalized_words(answer), normalized_words(reference)
    if not predicted or not remaining:
        return float(predicted == remaining)
    num_reference, num_shared = len(remaining), 0
    for word in predicted:
        if word in remaining:
            remaining.remove(word)
            num_shared += 1
    precision, recall = num_shared / len(predicted), num_shared / num_reference
    return 2 * precision * recall / (precision + recall) if num_shared else 0.0


PHRASES = st.lists(
    st.sampled_from(["the", "a", "Nile", "nile,", "river", "an", "1852", "...", "theatre"]),
    max_size=6,
).map(" ".join)


@given(PHRASES, st.lists(PHRASES, min_size=1, max_size=3))
def test_measures_match_shared_word_counts(answer, references):
    measures = training.evaluate_answers([answer], [references])
    best = max(slow_f1(answer, reference) for reference in references)
    assert measures["f1"] == pytest.approx(best)
    assert measures["exact_match"] == float(
        any(normalized_words(answer) == normalized_words(r) for r in references)
    )
    separate = [training.evaluate_answers([answer], [r])["f1"] for r in references]
    assert measures["f1"] == max(separate)


def test_hand_computed_values():
    rows = [
        ("The Denver Broncos", "Denver Broncos", 1, 1.0),
        ("Broncos", ["Denver Broncos", "the Denver Broncos!"], 0, 2 / 3),
        ("in 1976", "1977", 0, 0.0),
        ("", "", 1, 1.0),
        ("Paris", [], 0, 0.0),
        ("", "Paris", 0, 0.0),
        ("an", "The", 1, 1.0),
    ]
    answers, references = [row[0] for row in rows], [row[1] for row in rows]
    measures = training.evaluate_answers(answers, references)
    assert measures == {
        "questions": 7,
        "exact_match": 3 / 7,
        "f1": pytest.approx(sum(row[3] for row in rows) / 7),
        "answerable_f1": pytest.approx((1 + 2 / 3) / 4),
        "unanswerable_accuracy": pytest.approx(2 / 3),
    }
    answerable = list(itertools.islice(zip(answers, references, strict=True), 3))
    assert set(training.evaluate_answers(*zip(*answerable, strict=True))) == {
        "questions",
        "exact_match",
        "f1",
    }


@pytest.mark.parametrize("answers, references", [([], []), (["a"], ["a", "b"])])
def test_lists_of_different_length_raise_error(answers, references):
    with pytest.raises(InputError, match="references"):
        training.evaluate_answers(answers, references)
