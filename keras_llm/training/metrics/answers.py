"""Score answers to questions by SQuAD's rules."""

import collections
import re
import string
from collections.abc import Sequence

from keras_llm.errors import InputError, require_list

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def evaluate_answers(
    answers: Sequence[str], references: Sequence[str | list[str]]
) -> dict[str, float]:
    """Compute exact match and F1 of answers to questions.

    Texts are lowercased, and punctuation and the articles "a", "an" and "the" are removed. F1 is
    `2 p r / (p + r)`, with the precision p (share of the answer's words that are in the reference)
    and the recall r (share of the reference's words that are in the answer), counting repeated
    words. If the answer or the reference is empty, F1 is 1 if both are empty and 0 otherwise. If a
    question has several references, the best score counts.

    Args:
        answers: list of str, "" where the model finds no answer.
        references: list of the same length, of str or lists of str; "" or [] for unanswerable
            questions.

    Returns:
        A dict: `questions` (count), `exact_match` and `f1`, both in [0, 1]. If there are both
        answerable and unanswerable questions, also `answerable_f1` and `unanswerable_accuracy`,
        the share of unanswerable questions with an empty answer.

    Raises:
        InputError: if the lists are empty or differ in length.

    References:
        Rajpurkar et al., 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".
        Rajpurkar et al., 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD".

    Example:
    >>> scores = evaluate_answers(["The Nile.", "in 1852"], ["Nile", ["1852", "the year 1852"]])
    >>> scores["exact_match"], round(scores["f1"], 3)
    (0.5, 0.833)
    """
    require_list("answers", answers)
    require_list("references", references)
    if not answers or len(answers) != len(references):
        raise InputError(
            f"evaluate_answers: `answers` and `references` must have the same length, at least 1; "
            f"got {len(answers)} answers and {len(references)} references."
        )
    rows = []
    for answer, texts in zip(answers, references, strict=True):
        texts = [texts] if isinstance(texts, str) else (texts or [""])
        reference_words = [_words(text) for text in texts]
        words = _words(answer)
        best_f1 = max(_f1(words, reference) for reference in reference_words)
        rows.append((words in reference_words, best_f1, any(reference_words)))
    answerable = [f1 for _, f1, has_answer in rows if has_answer]
    unanswerable = [exact for exact, _, has_answer in rows if not has_answer]
    measures = {
        "questions": len(rows),
        "exact_match": _mean([exact for exact, _, _ in rows]),
        "f1": _mean([f1 for _, f1, _ in rows]),
    }
    if answerable and unanswerable:
        measures["answerable_f1"] = _mean(answerable)
        measures["unanswerable_accuracy"] = _mean(unanswerable)
    return measures


def _words(text):
    text = text.lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", text).split()


def _f1(answer, reference):
    if not answer or not reference:
        return float(answer == reference)
    shared = (collections.Counter(answer) & collections.Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))


def _mean(values):
    return sum(map(float, values)) / len(values)
