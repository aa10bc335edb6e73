"""Compare analogies and similarities with loops and SciPy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from keras_llm import training

WORDS = [f"w{i}" for i in range(40)]
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 6))


def cosine(first, second):
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def test_analogies_match_nearest_neighbor():
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    questions, right = [], 0
    for index in range(300):
        a, b, c = RNG.choice(40, 3, replace=False)
        target = unit[b] - unit[a] + unit[c]
        best = max(
            (i for i in range(40) if i not in (a, b, c)), key=lambda i: cosine(unit[i], target)
        )
        d = best if index % 3 else int(RNG.integers(40))
        right += d == best
        questions.append(tuple(WORDS[i] for i in (a, b, c, d)))
    unknown = [("w1", "w2", "w3", "nothing")] * 5
    measures = training.evaluate_analogies(TABLE, WORDS, questions + unknown, batch_size=64)
    assert measures == {"analogies": 300, "analogy_accuracy": pytest.approx(right / 300)}
    assert training.evaluate_analogies(TABLE, WORDS, unknown)["analogy_accuracy"] == 0.0


def test_similarities_match_spearman():
    pairs = [(*RNG.choice(WORDS, 2), float(RNG.integers(0, 6))) for _ in range(100)]
    measures = training.evaluate_similarities(TABLE, WORDS, [*pairs, ("w1", "nothing", 3.0)])
    cosines = [cosine(*(TABLE[WORDS.index(w)] for w in pair[:2])) for pair in pairs]
    expected = spearmanr(np.round(cosines, 6), [pair[2] for pair in pairs]).statistic
    assert measures == {"pairs": 100, "spearman": pytest.approx(expected, abs=2e-3)}
    assert training.evaluate_similarities(TABLE, WORDS, pairs[:1]) == {"pairs": 1, "spearman": 0.0}
