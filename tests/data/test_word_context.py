"""Compare context windows of words with loops written from the definition."""

import collections

import numpy as np
import pytest

from keras_llm import data
from keras_llm.errors import InputError

TEXTS = [
    f"The café was a {word}, the music a {word}; and {word} again!"
    for word in ("film", "book", "song", "play")
] * 12
WINDOW = 3


@pytest.fixture(scope="module")
def tok():
    return data.word_vocabulary(TEXTS, 50)


@pytest.fixture(scope="module")
def stream(tok):
    return data.word_stream(TEXTS, tok, WINDOW)


def context_pairs(stream, window):
    """Yield all ordered pairs of positions of words at most `window` apart."""
    for i, word in enumerate(stream):
        for j in range(max(0, i - window), min(len(stream), i + window + 1)):
            if i != j and word > 1 and stream[j] > 1:
                yield i, j


def test_word_vocabulary_is_sorted_by_frequency(tok, stream):
    assert tok.vocabulary[:2] == ["[PAD]", "[UNK]"]
    assert set(tok.vocabulary[2:4]) == {"a", "the"} and "cafe" in tok.vocabulary
    assert tok.encode("Film") == [tok.vocabulary.index("film")] and tok.encode("cafés") == [1]
    words = [tok.vocabulary[i] for i in stream if i]
    assert words[:5] == ["the", "cafe", "was", "a", "film"]
    assert len(words) == 12 * 4 * 12 and (stream[:WINDOW] == 0).all()
    assert data.word_vocabulary(TEXTS, 2).vocabulary_size == 4
    with pytest.raises(InputError, match="no word occurs at least 99"):
        data.word_vocabulary(TEXTS[:4], 50, min_count=99)


def test_skip_gram_samples_neighbors_by_distance(stream):
    counts, rows = collections.Counter(), 0
    # An epoch has a fixed cost, so repeat the stream within it.
    long_stream = np.tile(stream, 10)
    batches = data.neighbor_dataset(long_stream, "skip_gram", WINDOW, 4, 64, epochs=5, seed=1)
    for (word, candidates), labels in batches:
        assert candidates.shape == labels.shape == (len(word), 5)
        assert (labels.numpy() == [1, 0, 0, 0, 0]).all() and candidates.numpy().min() > 1
        counts.update(zip(word.numpy().tolist(), candidates.numpy()[:, 0].tolist(), strict=True))
        rows += len(word)
    expected = collections.Counter()
    for i, j in context_pairs(stream, WINDOW):
        expected[int(stream[i]), int(stream[j])] += (WINDOW + 1 - abs(i - j)) / WINDOW
    assert set(counts) == set(expected)
    total = sum(expected.values())
    for pair, weight in expected.items():
        assert counts[pair] / rows == pytest.approx(weight / total, rel=0.25), pair


def test_cbow_gives_neighbors_of_each_word(stream):
    examples = []
    for (context, candidates), _ in data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, seed=1):
        assert context.shape == (8, 2 * WINDOW)
        examples += list(
            zip(context.numpy().tolist(), candidates.numpy()[:, 0].tolist(), strict=True)
        )
    contexts = collections.defaultdict(list)
    for i in np.flatnonzero(stream > 1):
        contexts[int(stream[i])].append([*stream[i - WINDOW : i], *stream[i + 1 : i + WINDOW + 1]])
    assert len(examples) == (stream > 1).sum() // 8 * 8
    reach_counts = collections.Counter()
    for context, word in examples:
        matching_reaches = [
            reach
            for full_context in contexts[word]
            for reach in range(1, WINDOW + 1)
            if context == [0] * (WINDOW - reach)
            + list(full_context[WINDOW - reach : WINDOW + reach])
            + [0] * (WINDOW - reach)
        ]  # fmt: skip
        assert matching_reaches
        reach_counts[min(matching_reaches)] += 1
    assert min(reach_counts.values()) > len(examples) / 6


def test_negatives_follow_counts_to_power_of_three_quarters(stream):
    drawn = np.concatenate(
        [
            candidates.numpy()[:, 1:].reshape(-1)
            for (_, candidates), _ in data.neighbor_dataset(stream, "cbow", 2, 20, 64, epochs=20)
        ]
    )
    expected = np.bincount(stream, minlength=stream.max() + 1).astype(float) ** 0.75
    expected[:2] = 0
    shares = np.bincount(drawn, minlength=len(expected)) / len(drawn)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.006)


def test_frequent_words_are_subsampled_by_threshold(stream):
    stream, threshold, epochs = np.tile(stream, 10), 0.02, 6
    kept = np.zeros(stream.max() + 1)
    for (_, candidates), _ in data.neighbor_dataset(
        stream, "cbow", WINDOW, 1, 16, epochs, threshold=threshold
    ):
        kept += np.bincount(candidates.numpy()[:, 0], minlength=len(kept))
    counts = np.bincount(stream).astype(float)
    for word in range(2, len(counts)):
        ratio = threshold / (counts[word] / counts[2:].sum())
        expected = min(1.0, np.sqrt(ratio) + ratio)
        assert kept[word] / counts[word] / epochs == pytest.approx(expected, abs=0.05)


def test_batches_depend_on_seed_epoch_and_step(stream):
    def words(**options):
        dataset = data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, threshold=0.05, **options)
        return [(x[0].numpy().tolist(), x[1].numpy().tolist()) for x, _ in dataset]

    two = words(epochs=2, seed=4)
    assert two == words(epochs=2, seed=4) and two[0] != words(seed=5)[0]
    one = words(seed=4)
    assert two[: len(one)] == one and two[len(one)] != two[0]
    later = data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, 2, 4, 0.05).skip(len(two) - 1)
    assert [(x[0].numpy().tolist(), x[1].numpy().tolist()) for x, _ in later] == two[-1:]


def test_cooccurrences_are_weighted_by_distance(stream):
    first, second, counts = data.cooccurrences(stream, WINDOW)
    expected = collections.Counter()
    for i, j in context_pairs(stream, WINDOW):
        expected[int(stream[i]), int(stream[j])] += 1 / abs(i - j)
    actual = {(int(a), int(b)): float(c) for a, b, c in zip(first, second, counts, strict=True)}
    assert actual == pytest.approx(dict(expected), rel=1e-5)


def test_cooccurrences_occur_once_per_epoch(stream):
    pairs = data.cooccurrences(stream, WINDOW)
    batches = list(data.cooccurrence_dataset(pairs, 5, epochs=2, seed=1))
    steps = len(pairs[0]) // 5
    assert len(batches) == 2 * steps
    table = {(int(a), int(b)): float(c) for a, b, c in zip(*pairs, strict=True)}
    for epoch in (batches[:steps], batches[steps:]):
        rows = [row for (a, b), c in epoch for row in zip(*(t.numpy().tolist() for t in (a, b, c)), strict=True)]  # fmt: skip # noqa: E501
        assert len({row[:2] for row in rows}) == 5 * steps
        assert all(table[row[:2]] == pytest.approx(row[2]) for row in rows)
    with pytest.raises(InputError, match="too few for one batch of 9999"):
        data.cooccurrence_dataset(pairs, 9999)
