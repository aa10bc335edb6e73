"""Measures of answers by SQuAD's rules."""

import collections
import re
import string

from keras_llm.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def evaluate_answers(answers, references):
    """Exact match and F1 of answers to questions.

    Both are taken of words without letter case, punctuation and the articles "a", "an", "the". F1
    is `2 p r / (p + r)`, p the share of the answer's words that the reference has, r the share of
    the reference's that the answer has, each word as often as it comes; of an empty answer, or an
    empty reference, it is 1 if both are and else 0. Of several references the best counts.

    Args:
        answers: list of str, "" where a model finds no answer.
        references: list of as many str, or lists of str; "", or [], where there is no answer.

    Returns:
        A dict: `questions`, `exact_match` and `f1`, both in [0, 1]. If some questions have an
        answer and others none, also `answerable_f1`, and `unanswerable_accuracy`, the share of the
        questions without an answer to which none was given.

    Raises:
        InputError: if the lists are empty or of unequal length.

    References:
        Rajpurkar et al., 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".
        Rajpurkar et al., 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD".

    Example:
    >>> found = evaluate_answers(["The Nile.", "in 1852"], ["Nile", ["1852", "the year 1852"]])
    >>> found["exact_match"], round(found["f1"], 3)
    (0.5, 0.833)
    """
    if not answers or len(answers) != len(references):
        raise InputError(
            f"evaluate_answers: {len(answers)} answers and {len(references)} references; there "
            "must be as many of both, at least one."
        )
    rows = []
    for answer, known in zip(answers, references, strict=True):
        known = [known] if isinstance(known, str) else (known or [""])
        words = [_words(text) for text in known]
        found = _words(answer)
        rows.append((found in words, max(_f1(found, other) for other in words), any(words)))
    answerable = [f1 for _, f1, has_answer in rows if has_answer]
    others = [exact for exact, _, has_answer in rows if not has_answer]
    measures = {
        "questions": len(rows),
        "exact_match": _mean([exact for exact, _, _ in rows]),
        "f1": _mean([f1 for _, f1, _ in rows]),
    }
    if answerable and others:
        measures["answerable_f1"] = _mean(answerable)
        measures["unanswerable_accuracy"] = _mean(others)
    return measures


def _words(text):
    text = text.lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", text).split()


def _f1(found, reference):
    if not found or not reference:
        return float(found == reference)
    shared = (collections.Counter(found) & collections.Counter(reference)).total()
    return 2 * shared / (len(found) + len(reference))


def _mean(values):
    return sum(map(float, values)) / len(values)
