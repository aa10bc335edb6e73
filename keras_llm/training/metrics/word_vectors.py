"""Measures of word vectors: analogies, and similarity as people judge it."""

import numpy as np

from keras_llm.training.metrics.regression import spearman


def evaluate_analogies(table, words, questions, batch_size=256):
    """How often `b - a + c` is nearest to d, by cosine, of all words but a, b and c.

    Args:
        table: float array (V, D).
        words: list of V str.
        questions: list of tuples (a, b, c, d) of str. Those with a word that is not there are
            left out.
        batch_size: int > 0, questions that are answered at a time.

    Returns:
        A dict: `analogies`, how many could be asked, and `analogy_accuracy` (0 of none).

    Reference:
        Mikolov et al., 2013, "Efficient Estimation of Word Representations in Vector Space", 4.1.
    """
    table, ids = _unit(table), {word: index for index, word in enumerate(words)}
    asked = np.array([[ids[word] for word in q] for q in questions if set(q) <= ids.keys()], int)
    right = 0
    for begin in range(0, len(asked), batch_size):
        a, b, c, d = asked[begin : begin + batch_size].T
        scores = (table[b] - table[a] + table[c]) @ table.T
        scores[np.arange(len(a))[:, None], np.stack([a, b, c], axis=1)] = -np.inf
        right += int((scores.argmax(axis=1) == d).sum())
    return {
        "analogies": len(asked),
        "analogy_accuracy": right / len(asked) if len(asked) else 0.0,
    }


def evaluate_similarities(table, words, pairs):
    """Spearman's correlation of cosines with people's judgements.

    Args:
        table: float array (V, D).
        words: list of V str.
        pairs: list of tuples (word, word, score). Those with a word that is not there are left
            out.

    Returns:
        A dict: `pairs`, how many were compared, and `spearman`, ties having their mean rank (0 of
        fewer than two pairs).
    """
    table, ids = _unit(table), {word: index for index, word in enumerate(words)}
    known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    if len(known) < 2:
        return {"pairs": len(known), "spearman": 0.0}
    first, second = (table[[ids[pair[side]] for pair in known]] for side in (0, 1))
    found = spearman((first * second).sum(axis=1), [pair[2] for pair in known])
    return {"pairs": len(known), "spearman": found}


def _unit(table):
    table = np.asarray(table, "float32")
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
