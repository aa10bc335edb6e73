"""Compare n-gram models and measures with slow counting."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from keras_llm import training
from keras_llm.errors import InputError

V, BOS = 9, 1


def stream(count, seed):
    random = np.random.default_rng(seed)
    weights = [1, 0, 6, 5, 3, 2, 1, 0.4, 0]  # one token never occurs
    p = np.array(weights[1:]) / sum(weights[1:])
    documents = [
        [BOS, *(1 + random.choice(8, random.integers(0, 9), p=p)), 0] for _ in range(count)
    ]
    return np.concatenate(documents).astype("int32")


def kneser_ney(train):
    """Return a function that computes one probability at a time from dicts."""
    padded = [BOS, BOS, *train.tolist()]
    triples = [t for t in itertools.pairwise(itertools.pairwise(padded)) if t[1][1] != BOS]
    trigrams = Counter((a, b, c) for (a, b), (_, c) in triples)
    bigrams = Counter((b, c) for _, b, c in trigrams)
    unigrams = Counter((c,) for _, c in bigrams)

    def discount(counts):
        ones, twos = (sum(c == k for c in counts.values()) for k in (1, 2))
        return ones / (ones + 2 * twos) if ones else 0.5

    orders = [(counts, discount(counts)) for counts in (unigrams, bigrams, trigrams)]
    totals = [defaultdict(int), defaultdict(int), defaultdict(int)]
    followers = [defaultdict(int), defaultdict(int), defaultdict(int)]
    for i, (counts, _) in enumerate(orders):
        for gram, count in counts.items():
            totals[i][gram[:-1]] += count
            followers[i][gram[:-1]] += 1

    def p(gram):
        if not gram:
            return 1 / V
        i = len(gram) - 1
        counts, d = orders[i]
        lower = p(gram[1:])
        context = gram[:-1]
        if context not in totals[i]:
            return lower
        discounted = max(counts[gram] - d, 0)
        return (discounted + d * followers[i][context] * lower) / totals[i][context]

    return p


def test_trigram_matches_interpolated_kneser_ney():
    train, text = stream(40, 0), stream(20, 1)
    model = training.Trigram(train, BOS, V)
    p = kneser_ney(train)
    padded = [BOS, BOS, *text.tolist()]
    expected = [
        math.log(p(tuple(padded[i : i + 3]))) for i in range(len(text)) if padded[i + 2] != BOS
    ]
    np.testing.assert_allclose(model.log_probabilities(text), expected, rtol=1e-12)
    measures = training.evaluate_trigram(train, text, 500, BOS, V)
    assert measures["tokens"] == len(expected)
    assert measures["bits_per_byte"] == pytest.approx(-sum(expected) / math.log(2) / 500)


def test_trigram_probabilities_sum_to_one():
    model = training.Trigram(stream(40, 0), BOS, V)
    orders = model._orders
    uniform = orders[0].discount * orders[0].followers[0] / orders[0].totals[0] / V
    for u, v in itertools.product(range(V), repeat=2):
        rows = [np.array([u, v, w]) for w in range(V) if w != BOS]
        remaining = 1 - sum(math.exp(model.log_probabilities(row)[-1]) for row in rows)
        assert 0 < remaining <= uniform + 1e-9  # of the begin token, which is never predicted


def test_trigram_beats_unigram_on_ordered_text():
    text = np.array(([BOS] + [2, 3, 4, 5] * 10 + [0]) * 9, "int32")
    trigram = training.evaluate_trigram(text, text, 100, BOS, V)
    unigram = training.evaluate_unigram(text, text, 100, BOS, V)
    assert trigram["nats_per_token"] < 0.2 * unigram["nats_per_token"]
    with pytest.raises(InputError, match="no token"):
        training.Trigram(np.array([BOS]), BOS, V)


def test_distinct_n_counts_n_grams():
    texts = [list("abab"), list("abc"), list("z")]
    assert training.distinct_n(texts, 1) == 4 / 8
    assert training.distinct_n(texts, 2) == 3 / 5
    with pytest.raises(InputError, match="5 tokens"):
        training.distinct_n(texts, 5)


def test_memorization_rate_matches_slow_counting():
    random = np.random.default_rng(0)
    train = random.integers(0, 6, 300)
    texts = [random.integers(0, 6, n).tolist() for n in (30, 2, 50)] + [train[40:60].tolist()]
    for n in (1, 3, 5):
        train_grams = {tuple(train[i : i + n].tolist()) for i in range(len(train) - n + 1)}
        grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
        expected = sum(gram in train_grams for gram in grams) / len(grams)
        assert training.memorization_rate(texts, train, n) == expected
        assert expected > 0.1
    assert training.memorization_rate(texts, train[:2], 5) == 0
    with pytest.raises(InputError, match="99 tokens"):
        training.memorization_rate(texts, train, 99)


def test_pass_at_k_matches_mean_over_all_choices():
    samples, passed = [5, 6, 4], [2, 0, 4]
    for k in (1, 2, 3, 4):
        shares = []
        for n, c in zip(samples, passed, strict=True):
            choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
            shares.append(sum(map(any, choices)) / len(choices))
        assert training.pass_at_k(samples, passed, k) == pytest.approx(sum(shares) / 3)


@pytest.mark.parametrize(
    "arguments, message",
    [(([], [], 1), "at least 1"), (([3], [1, 2], 1), "same length"), (([3], [1], 4), "`k`"),
     (([3], [1], 0), "`k`"), (([3], [4], 1), "`passed`")],
)  # fmt: skip
def test_invalid_pass_at_k_arguments_raise_error(arguments, message):
    with pytest.raises(InputError, match=message):
        training.pass_at_k(*arguments)
