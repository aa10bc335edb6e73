"""Count n-grams of tokens: a trigram baseline, distinct-n and verbatim memorization."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from keras_llm.errors import InputError
from keras_llm.training.metrics.language_model import likelihoods

_CHUNK = 1 << 22  # tokens


class Trigram:
    """A trigram model with interpolated Kneser-Ney smoothing.

    `p(w | u v) = (max(c(u v w) - d, 0) + d n(u v) p(w | v)) / c(u v)`, where `n(u v)` is the number
    of distinct tokens that follow `u v`. `p(w | v)` and `p(w)` use the same formula with
    continuation counts, the number of distinct tokens that precede `v w` and `w`; `p(w)` backs off
    to the uniform distribution. For each order `d = n1 / (n1 + 2 n2)`, where n1 and n2 are how many
    counts equal 1 and 2; if n1 is 0, d is 0.5, so that every token has a nonzero probability.

    Args:
        token_ids: int array (N,) from `data.encode_documents`. Begin tokens serve as context but
            are not predicted.
        bos_id: int, the begin token.
        vocabulary_size: int. V.

    Raises:
        InputError: if there is no token to predict.

    Reference:
        Chen and Goodman, 1999, "An Empirical Study of Smoothing Techniques for Language
        Modeling", sections 2.7 and 3.
    """

    def __init__(self, token_ids: np.ndarray, bos_id: int, vocabulary_size: int) -> None:
        self.bos_id, self.size = bos_id, vocabulary_size
        before, last = self._split(token_ids)
        if not len(last):
            raise InputError("Trigram: `token_ids` has no token to predict.")
        three, counts = np.unique(before * self.size + last, return_counts=True)
        two, one_left = np.unique(three % self.size**2, return_counts=True)
        one, two_left = np.unique(two % self.size, return_counts=True)
        self._orders = [
            _Order(one, two_left, self.size),
            _Order(two, one_left, self.size),
            _Order(three, counts, self.size),
        ]

    def log_probabilities(self, token_ids: np.ndarray) -> np.ndarray:
        """Return log p of each token except begin tokens, given the two before it: float (M,)."""
        before, last = self._split(token_ids)
        p = np.full(len(last), 1.0 / self.size)
        for order, context in zip(
            self._orders, (np.zeros_like(before), before % self.size, before), strict=True
        ):
            p = order.interpolated(context, last, p)
        return np.log(p)

    def _split(self, token_ids):
        """Return the context `u * V + v` and the token w of each predicted token, int (M,)."""
        stream = np.concatenate([[self.bos_id] * 2, token_ids]).astype("int64")
        counts = stream[2:] != self.bos_id
        return (stream[:-2] * self.size + stream[1:-1])[counts], stream[2:][counts]


class _Order:
    """The counts of one n-gram order, sorted by gram `context * V + token`."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, size: int) -> None:
        self.grams, self.counts, self.size = grams, counts, size
        ones, twos = np.sum(counts == 1), np.sum(counts == 2)
        self.discount = ones / (ones + 2 * twos) if ones else 0.5
        self.contexts, starts = np.unique(grams // size, return_index=True)
        self.totals = np.add.reduceat(counts, starts)
        self.followers = np.diff([*starts, len(grams)])

    def interpolated(
        self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray
    ) -> np.ndarray:
        rows = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        is_seen = self.contexts[rows] == contexts
        grams = contexts * self.size + tokens
        gram_rows = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        counts = np.where(self.grams[gram_rows] == grams, self.counts[gram_rows], 0)
        discounted = np.maximum(counts - self.discount, 0)
        backoff = self.discount * self.followers[rows]
        return np.where(is_seen, (discounted + backoff * lower) / self.totals[rows], lower)


def evaluate_trigram(
    train_ids: np.ndarray, token_ids: np.ndarray, num_bytes: int, bos_id: int, vocabulary_size: int
) -> dict[str, float]:
    """Evaluate the `Trigram` baseline with the metrics of `evaluate_language_model`.

    Args:
        train_ids: int array, the training stream.
        token_ids, num_bytes, bos_id: see `evaluate_language_model`.
        vocabulary_size: int. V.

    Returns:
        A dict like that of `evaluate_language_model`, without `accuracy`.
    """
    log_p = Trigram(train_ids, bos_id, vocabulary_size).log_probabilities(token_ids)
    return likelihoods(-float(log_p.sum()), len(log_p), num_bytes)


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Return the number of distinct n-grams divided by the number of n-grams, in [0, 1].

    Args:
        texts: list of lists of tokens: ids, words or characters.
        n: int > 0.

    Raises:
        InputError: if every text has fewer than n tokens.

    Example:
    >>> distinct_n([["a", "b", "a", "b"], ["a", "b"]], 2)
    0.5

    Reference:
        Li et al., 2016, "A Diversity-Promoting Objective Function for Neural Conversation
        Models", section 5.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    if not grams:
        raise InputError(f"distinct_n: no text has {n} tokens.")
    return len(set(grams)) / len(grams)


def memorization_rate(texts: Iterable[Sequence[int]], train_ids: np.ndarray, n: int) -> float:
    """Return the share of n-grams of texts that occur verbatim in the training data, in [0, 1].

    Compare the result with held-out texts of the same length: common n-grams occur in both.

    Args:
        texts: list of lists of token ids.
        train_ids: int array (N,), the training stream.
        n: int > 0.

    Raises:
        InputError: if every text has fewer than n tokens.

    Example:
    >>> memorization_rate([[1, 2, 3, 9]], np.array([5, 1, 2, 3, 4]), 3)
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    if not grams:
        raise InputError(f"memorization_rate: no text has {n} tokens.")
    wanted = {tuple(map(int, gram)) for gram in grams}
    hashes, seen = _hashes_of(wanted, n), set()
    for begin in range(0, len(train_ids), _CHUNK):  # a memory-mapped stream may exceed memory
        part = np.asarray(train_ids[begin : begin + _CHUNK + n - 1], "int64")
        starts = np.flatnonzero(np.isin(_hashes(part, n), hashes))
        seen |= {tuple(part[start : start + n].tolist()) for start in starts} & wanted
    return sum(tuple(map(int, gram)) in seen for gram in grams) / len(grams)


def _grams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _hashes_of(grams, n):
    return np.concatenate([_hashes(np.array(gram, "int64"), n) for gram in grams])


def _hashes(ids, n):
    """Return a hash for each n-gram of ids."""
    count = max(0, len(ids) - n + 1)
    hashes = np.zeros(count, "uint64")
    for offset in range(n):
        part = ids[offset : offset + count].astype("uint64")
        hashes = (hashes * np.uint64(0x9E3779B97F4A7C15)) ^ (hashes >> np.uint64(29)) ^ part
    return hashes
