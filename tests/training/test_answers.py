"""Exact match and F1 against a slow count of shared words, and against answers worked by hand."""

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import training
from keras_llm.errors import InputError


def words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def slow_f1(answer, reference):
    """The same from the longest matching of equal words, each used once."""
    found, left = words(answer), words(reference)
    if not found or not left:
        return float(found == left)
    known, shared = len(left), 0
    for word in found:
        if word in left:
            left.remove(word)
            shared += 1
    precision, recall = shared / len(found), shared / known
    return 2 * precision * recall / (precision + recall) if shared else 0.0


PHRASES = st.lists(
    st.sampled_from(["the", "a", "Nile", "nile,", "river", "an", "1852", "...", "theatre"]),
    max_size=6,
).map(" ".join)


@given(PHRASES, st.lists(PHRASES, min_size=1, max_size=3))
def test_both_are_those_of_shared_words(answer, references):
    found = training.evaluate_answers([answer], [references])
    best = max(slow_f1(answer, reference) for reference in references)
    assert found["f1"] == pytest.approx(best)
    assert found["exact_match"] == float(any(words(answer) == words(r) for r in references))
    alone = [training.evaluate_answers([answer], [r])["f1"] for r in references]
    assert found["f1"] == max(alone)


def test_rows_worked_by_hand():
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
    found = training.evaluate_answers(answers, references)
    assert found == {
        "questions": 7,
        "exact_match": 3 / 7,
        "f1": pytest.approx(sum(row[3] for row in rows) / 7),
        "answerable_f1": pytest.approx((1 + 2 / 3) / 4),
        "unanswerable_accuracy": pytest.approx(2 / 3),
    }
    some = list(itertools.islice(zip(answers, references, strict=True), 3))
    assert set(training.evaluate_answers(*zip(*some, strict=True))) == {
        "questions",
        "exact_match",
        "f1",
    }


@pytest.mark.parametrize("answers, references", [([], []), (["a"], ["a", "b"])])
def test_lists_of_unequal_length_are_refused(answers, references):
    with pytest.raises(InputError, match="references"):
        training.evaluate_answers(answers, references)
