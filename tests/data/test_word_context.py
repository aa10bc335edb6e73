"""Neighbors of words, beside loops written from the definition."""

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


def near_pairs(stream, window):
    """All ordered pairs of places of words at most `window` apart."""
    for i, word in enumerate(stream):
        for j in range(max(0, i - window), min(len(stream), i + window + 1)):
            if i != j and word > 1 and stream[j] > 1:
                yield i, j


def test_words_are_whole_and_the_most_frequent_come_first(tok, stream):
    assert tok.vocabulary[:2] == ["[PAD]", "[UNK]"]
    assert set(tok.vocabulary[2:4]) == {"a", "the"} and "cafe" in tok.vocabulary
    assert tok.encode("Film") == [tok.vocabulary.index("film")] and tok.encode("cafés") == [1]
    words = [tok.vocabulary[i] for i in stream if i]
    assert words[:5] == ["the", "cafe", "was", "a", "film"]
    assert len(words) == 12 * 4 * 12 and (stream[:WINDOW] == 0).all()
    assert data.word_vocabulary(TEXTS, 2).vocabulary_size == 4
    with pytest.raises(InputError, match="no word occurs at least 99"):
        data.word_vocabulary(TEXTS[:4], 50, min_count=99)


def test_skip_gram_gives_each_neighbor_as_often_as_its_distance_says(stream):
    found, rows = collections.Counter(), 0
    # An epoch costs more than the words in it.
    longer = np.tile(stream, 10)
    batches = data.neighbor_dataset(longer, "skip_gram", WINDOW, 4, 64, epochs=5, seed=1)
    for (word, candidates), labels in batches:
        assert candidates.shape == labels.shape == (len(word), 5)
        assert (labels.numpy() == [1, 0, 0, 0, 0]).all() and candidates.numpy().min() > 1
        found.update(zip(word.numpy().tolist(), candidates.numpy()[:, 0].tolist(), strict=True))
        rows += len(word)
    expected = collections.Counter()
    for i, j in near_pairs(stream, WINDOW):
        expected[int(stream[i]), int(stream[j])] += (WINDOW + 1 - abs(i - j)) / WINDOW
    assert set(found) == set(expected)
    total = sum(expected.values())
    for pair, count in expected.items():
        assert found[pair] / rows == pytest.approx(count / total, rel=0.25), pair


def test_cbow_gives_the_neighbors_of_each_word(stream):
    seen = []
    for (near, candidates), _ in data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, seed=1):
        assert near.shape == (8, 2 * WINDOW)
        seen += list(zip(near.numpy().tolist(), candidates.numpy()[:, 0].tolist(), strict=True))
    whole = collections.defaultdict(list)
    for i in np.flatnonzero(stream > 1):
        whole[int(stream[i])].append([*stream[i - WINDOW : i], *stream[i + 1 : i + WINDOW + 1]])
    assert len(seen) == (stream > 1).sum() // 8 * 8
    reaches = collections.Counter()
    for near, word in seen:
        fits = [
            reach
            for context in whole[word]
            for reach in range(1, WINDOW + 1)
            if near == [0] * (WINDOW - reach) + list(context[WINDOW - reach : WINDOW + reach])
            + [0] * (WINDOW - reach)
        ]  # fmt: skip
        assert fits
        reaches[min(fits)] += 1
    assert min(reaches.values()) > len(seen) / 6


def test_negatives_are_drawn_by_counts_to_the_power_of_three_quarters(stream):
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


def test_frequent_words_are_dropped_as_often_as_the_threshold_says(stream):
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
        found = data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, threshold=0.05, **options)
        return [(x[0].numpy().tolist(), x[1].numpy().tolist()) for x, _ in found]

    two = words(epochs=2, seed=4)
    assert two == words(epochs=2, seed=4) and two[0] != words(seed=5)[0]
    one = words(seed=4)
    assert two[: len(one)] == one and two[len(one)] != two[0]
    later = data.neighbor_dataset(stream, "cbow", WINDOW, 2, 8, 2, 4, 0.05).skip(len(two) - 1)
    assert [(x[0].numpy().tolist(), x[1].numpy().tolist()) for x, _ in later] == two[-1:]


def test_cooccurrences_count_by_distance(stream):
    first, second, counts = data.cooccurrences(stream, WINDOW)
    expected = collections.Counter()
    for i, j in near_pairs(stream, WINDOW):
        expected[int(stream[i]), int(stream[j])] += 1 / abs(i - j)
    found = {(int(a), int(b)): float(c) for a, b, c in zip(first, second, counts, strict=True)}
    assert found == pytest.approx(dict(expected), rel=1e-5)


def test_cooccurrences_come_once_an_epoch(stream):
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
