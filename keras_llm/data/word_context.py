"""Create training data for word vectors from words and their neighbors."""

import collections
import functools
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from keras_llm.errors import InputError
from keras_llm.tokenizers import WordPiece
from keras_llm.types import Dataset

PAD, UNKNOWN = 0, 1
_SPECIAL = ("[PAD]", "[UNK]")


def word_vocabulary(documents: Iterable[str], max_words: int, min_count: int = 5) -> WordPiece:
    """Build a tokenizer whose tokens are whole words, the most frequent first.

    Text is lowercased; accents and punctuation are removed.

    Args:
        documents: iterable of str.
        max_words: int > 0.
        min_count: int > 0. Rarer words are unknown.

    Returns:
        A `tokenizers.WordPiece`; id 0 is padding, 1 is the unknown word.

    Raises:
        InputError: if no word is frequent enough.
    """
    counts = collections.Counter(word for text in documents for word in _words(text))
    frequent = [word for word, count in counts.most_common(max_words) if count >= min_count]
    if not frequent:
        raise InputError(f"no word occurs at least {min_count} times.")
    return WordPiece([*_SPECIAL, *frequent])


def word_stream(documents: Iterable[str], tokenizer: WordPiece, gap: int) -> np.ndarray:
    """Encode documents as one stream of the ids of known words, with gaps between documents.

    Args:
        documents: iterable of str.
        tokenizer: from `word_vocabulary`.
        gap: int, the number of padding ids between documents. At least the window size, so that no
            word has neighbors in another document.

    Returns:
        Int32 array (N,).
    """
    ids = {word: index for index, word in enumerate(tokenizer.vocabulary)}
    parts = []
    for text in documents:
        word_ids = [ids[word] for word in _words(text) if word in ids]
        parts.append(np.array([*word_ids, *[PAD] * gap], "int32"))
    return np.concatenate([np.zeros(gap, "int32"), *parts])


def neighbor_dataset(
    stream: np.ndarray,
    objective: str,
    window: int,
    negatives: int,
    batch_size: int,
    epochs: int = 1,
    seed: int = 0,
    threshold: float | None = None,
) -> Dataset:
    """Create batches of words, their neighbors and negative samples.

    Each epoch drops occurrences of frequent words, of share f, with probability
    `1 - sqrt(threshold / f) - threshold / f`, shuffles the rest, and draws the window size of each
    word from 1 to `window`. Negatives are drawn by their counts to the power 0.75. All random
    draws are a pure function of (seed, epoch, step).

    Args:
        stream: from `word_stream`, with gaps of at least `window`.
        objective: "skip_gram" or "cbow", see `models.word_vectors`.
        window: int > 0.
        negatives: int > 0. K.
        batch_size: int > 0, the number of center words per batch.
        epochs: int > 0.
        seed: int >= 0.
        threshold: float in (0, 1), or None to drop nothing.

    Returns:
        `tf.data.Dataset` of pairs: for "skip_gram" `((word (B,), candidates (B, 1 + K)), labels)`
        with one row per neighbor of each word; for "cbow" `((neighbors (B, 2 window),
        candidates (B, 1 + K)), labels)` with padding for missing neighbors. The first candidate
        is the true one; labels, float32 (B, 1 + K), are 1 for it.

    Raises:
        InputError: if fewer words are left than `batch_size`.

    Reference:
        Mikolov et al., 2013, "Distributed Representations of Words and Phrases and their
        Compositionality", section 2.
    """
    import tensorflow as tf

    counts = np.bincount(stream).astype("float64")
    counts[: UNKNOWN + 1] = 0.0
    drawn = np.cumsum(counts**0.75)
    drawn = tf.constant(drawn / drawn[-1], tf.float32)
    keep = np.ones_like(counts)
    if threshold is not None:
        ratio = threshold * counts.sum() / np.maximum(counts, 1.0)
        keep = np.where(counts > 0, np.sqrt(ratio) + ratio, 1.0)
    parts = []
    for epoch in range(epochs):
        draws = np.random.default_rng((seed, epoch)).random(len(stream))
        remaining = stream[draws < keep[stream]]
        part = _one_epoch(remaining, objective, window, negatives, batch_size, drawn, (seed, epoch))
        parts.append(part)
    dataset = functools.reduce(lambda whole, part: whole.concatenate(part), parts)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def cooccurrences(stream: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count how often words occur near each other; a neighbor at distance d counts 1 / d.

    Args:
        stream: from `word_stream`, with gaps of at least `window`.
        window: int > 0.

    Returns:
        Int32 arrays (P,), (P,) of id pairs in both orders, and float32 counts (P,).

    Reference:
        Pennington et al., 2014, "GloVe: Global Vectors for Word Representation".
    """
    size = int(stream.max()) + 1
    keys, counts = np.zeros(0, "int64"), np.zeros(0)
    for distance in range(1, window + 1):
        first, second = stream[:-distance].astype("int64"), stream[distance:]
        real = (first > UNKNOWN) & (second > UNKNOWN)
        new_keys, times = np.unique(first[real] * size + second[real], return_counts=True)
        keys, counts = _summed(np.append(keys, new_keys), np.append(counts, times / distance))
    first, second = np.divmod(keys, size)
    keys, counts = _summed(np.append(keys, second * size + first), np.append(counts, counts))
    first, second = np.divmod(keys, size)
    return first.astype("int32"), second.astype("int32"), counts.astype("float32")


def cooccurrence_dataset(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
    epochs: int = 1,
    seed: int = 0,
) -> Dataset:
    """Create batches of the counts of `cooccurrences`, shuffled each epoch.

    Args:
        pairs: the three arrays (P,) from `cooccurrences`.
        batch_size: int > 0. B.
        epochs: int > 0.
        seed: int >= 0.

    Returns:
        `tf.data.Dataset` of pairs `((word (B,), other (B,)), counts (B,))`.

    Raises:
        InputError: if there are fewer pairs than `batch_size`.
    """
    import tensorflow as tf

    words, others, counts = map(tf.constant, pairs)
    rows = len(pairs[0])
    steps = _steps(rows, batch_size)

    def batch(index):
        picked = _picked(index % steps, batch_size, rows, seed, index // steps)
        return (tf.gather(words, picked), tf.gather(others, picked)), tf.gather(counts, picked)

    dataset = tf.data.Dataset.range(epochs * steps)
    return dataset.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _one_epoch(stream, objective, window, negatives, batch_size, drawn, seed):
    import tensorflow as tf

    centers = np.flatnonzero(stream > UNKNOWN)
    steps = _steps(len(centers), batch_size)
    text, places = tf.constant(stream), tf.constant(centers)
    offsets = tf.constant([d for d in range(-window, window + 1) if d], tf.int64)

    def batch(step):
        place = tf.gather(places, _picked(step, batch_size, len(centers), *seed))[:, tf.newaxis]
        seeds = tf.random.experimental.stateless_fold_in(tf.constant(seed, tf.int64), step)
        seeds = tf.random.experimental.stateless_split(seeds, 2)
        shape = (batch_size, 1)
        reach = tf.random.stateless_uniform(shape, seeds[0], 1, window + 1, tf.int64)
        near = tf.where(tf.abs(offsets) <= reach, tf.gather(text, place + offsets), PAD)
        words = tf.gather(text, place)
        if objective == "cbow":
            rows, true = near, words
        else:
            real = near > UNKNOWN
            rows = tf.boolean_mask(tf.broadcast_to(words, tf.shape(near)), real)
            true = tf.boolean_mask(near, real)[:, tf.newaxis]
        chance = tf.random.stateless_uniform((tf.shape(true)[0], negatives), seeds[1])
        others = tf.searchsorted(drawn, tf.reshape(chance, [-1]), side="right")
        candidates = tf.concat([true, tf.reshape(others, tf.shape(chance))], axis=1)
        labels = tf.concat([tf.ones_like(true), tf.zeros_like(chance, tf.int32)], axis=1)
        return (rows, candidates), tf.cast(labels, tf.float32)

    return tf.data.Dataset.range(steps).map(batch, num_parallel_calls=2, deterministic=True)


def _picked(step, batch_size, rows, seed, epoch):
    """Return the rows of a batch in the order of the epoch."""
    import tensorflow as tf

    indices = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    seeds = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.index_shuffle(indices, seed=seeds, max_index=rows - 1)


def _steps(rows, batch_size):
    if rows < batch_size:
        raise InputError(f"{rows} rows are too few for one batch of {batch_size}.")
    return rows // batch_size


def _summed(keys, counts):
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, counts, len(distinct))


def _words(text):
    marks = unicodedata.normalize("NFD", text.lower())
    return re.findall(r"[^\W_]+", "".join(c for c in marks if unicodedata.category(c) != "Mn"))
