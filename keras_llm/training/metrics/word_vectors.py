"""Evaluate word vectors on analogies and on human similarity judgments."""

from collections.abc import Iterable, Sequence

import numpy as np

from keras_llm.errors import require_list
from keras_llm.training.metrics.regression import spearman


def evaluate_analogies(
    table: np.ndarray,
    words: Sequence[str],
    questions: Iterable[tuple[str, str, str, str]],
    batch_size: int = 256,
) -> dict[str, float]:
    """Compute the accuracy of analogies "a is to b as c is to d".

    A question is correct if d has the largest cosine similarity to `b - a + c` among all words
    except a, b and c. Vectors are normalized first.

    Args:
        table: float array (V, D).
        words: list of V str.
        questions: list of tuples (a, b, c, d) of str. Questions with a word outside `words` are
            skipped.
        batch_size: int > 0, number of questions per matrix product.

    Returns:
        A dict: `analogies`, the number of questions that were not skipped, and `analogy_accuracy`
        (0 if there are none).

    Reference:
        Mikolov et al., 2013, "Efficient Estimation of Word Representations in Vector Space", 4.1.
    """
    require_list("words", words)
    table, ids = _unit(table), {word: index for index, word in enumerate(words)}
    rows = np.array([[ids[word] for word in q] for q in questions if set(q) <= ids.keys()], int)
    right = 0
    for begin in range(0, len(rows), batch_size):
        a, b, c, d = rows[begin : begin + batch_size].T
        scores = (table[b] - table[a] + table[c]) @ table.T
        scores[np.arange(len(a))[:, None], np.stack([a, b, c], axis=1)] = -np.inf
        right += int((scores.argmax(axis=1) == d).sum())
    return {
        "analogies": len(rows),
        "analogy_accuracy": right / len(rows) if len(rows) else 0.0,
    }


def evaluate_similarities(
    table: np.ndarray, words: Sequence[str], pairs: Iterable[tuple[str, str, float]]
) -> dict[str, float]:
    """Compute Spearman's correlation of cosine similarities with human judgments.

    Args:
        table: float array (V, D).
        words: list of V str.
        pairs: list of tuples (word, word, score). Pairs with a word outside `words` are skipped.

    Returns:
        A dict: `pairs`, the number of pairs that were not skipped, and `spearman` (ties get their
        mean rank; 0 if there are fewer than two pairs).
    """
    require_list("words", words)
    table, ids = _unit(table), {word: index for index, word in enumerate(words)}
    pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    if len(pairs) < 2:
        return {"pairs": len(pairs), "spearman": 0.0}
    first = table[[ids[pair[0]] for pair in pairs]]
    second = table[[ids[pair[1]] for pair in pairs]]
    correlation = spearman((first * second).sum(axis=1), [pair[2] for pair in pairs])
    return {"pairs": len(pairs), "spearman": correlation}


def _unit(table):
    table = np.asarray(table, "float32")
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
