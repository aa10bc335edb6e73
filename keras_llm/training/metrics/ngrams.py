"""Models and measures that count n-grams of tokens."""

import numpy as np

from keras_llm.errors import InputError
from keras_llm.training.metrics.language_model import likelihoods

_CHUNK = 1 << 22  # tokens


class Trigram:
    """The trigram model with interpolated Kneser-Ney smoothing.

    `p(w | u v) = (max(c(u v w) - d, 0) + d n(u v) p(w | v)) / c(u v)`, where `n(u v)` is how many
    different tokens follow; `p(w | v)` and `p(w)` are made alike of how many different tokens
    stand before `v w` and before `w`, and end in the even distribution. Each `d` is
    `n1 / (n1 + 2 n2)` of the counts that are one and two, and 0.5 where none is one, so that every
    token has some probability.

    Args:
        token_ids: int array (N,) from `data.encode_documents`. Begin tokens stand before others
            but are not predicted.
        bos_id: int, the begin token.
        vocabulary_size: int. V.

    Raises:
        InputError: if no token is to be predicted.

    Reference:
        Chen and Goodman, 1999, "An Empirical Study of Smoothing Techniques for Language
        Modeling", sections 2.7 and 3.
    """

    def __init__(self, token_ids, bos_id, vocabulary_size):
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

    def log_probabilities(self, token_ids):
        """Of each token of a stream but begin tokens, given the two before it: float (M,)."""
        before, last = self._split(token_ids)
        p = np.full(len(last), 1.0 / self.size)
        for order, context in zip(
            self._orders, (np.zeros_like(before), before % self.size, before), strict=True
        ):
            p = order.interpolated(context, last, p)
        return np.log(p)

    def _split(self, token_ids):
        """The two tokens before each token that is predicted, as one number, and that token."""
        stream = np.concatenate([[self.bos_id] * 2, token_ids]).astype("int64")
        counts = stream[2:] != self.bos_id
        return (stream[:-2] * self.size + stream[1:-1])[counts], stream[2:][counts]


class _Order:
    """Counts of one order: grams `context * V + token`, sorted."""

    def __init__(self, grams, counts, size):
        self.grams, self.counts, self.size = grams, counts, size
        ones, twos = np.sum(counts == 1), np.sum(counts == 2)
        self.discount = ones / (ones + 2 * twos) if ones else 0.5
        self.contexts, starts = np.unique(grams // size, return_index=True)
        self.totals = np.add.reduceat(counts, starts)
        self.followers = np.diff([*starts, len(grams)])

    def interpolated(self, contexts, tokens, lower):
        places = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        known = self.contexts[places] == contexts
        grams = contexts * self.size + tokens
        found = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        counts = np.where(self.grams[found] == grams, self.counts[found], 0)
        kept = np.maximum(counts - self.discount, 0)
        freed = self.discount * self.followers[places]
        return np.where(known, (kept + freed * lower) / self.totals[places], lower)


def evaluate_trigram(train_ids, token_ids, num_bytes, bos_id, vocabulary_size):
    """The measures of `evaluate_language_model` for the `Trigram` model.

    Args:
        train_ids: int array, the training stream.
        token_ids, num_bytes, bos_id: as in `evaluate_language_model`.
        vocabulary_size: int. V.

    Returns:
        A dict like that of `evaluate_language_model`, without `accuracy`.
    """
    log_p = Trigram(train_ids, bos_id, vocabulary_size).log_probabilities(token_ids)
    return likelihoods(-float(log_p.sum()), len(log_p), num_bytes)


def distinct_n(texts, n):
    """The share of different n-grams among all n-grams of texts, in [0, 1].

    Args:
        texts: list of lists of tokens: ids, words or characters.
        n: int > 0.

    Raises:
        InputError: if no text has n tokens.

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


def memorization_rate(texts, train_ids, n):
    """The share of the n-grams of texts that stand verbatim in the training text, in [0, 1].

    Texts of the same length that were held out give what to compare it with: some n-grams
    anybody writes.

    Args:
        texts: list of lists of token ids.
        train_ids: int array (N,), the training stream.
        n: int > 0.

    Raises:
        InputError: if no text has n tokens.

    Example:
    >>> memorization_rate([[1, 2, 3, 9]], np.array([5, 1, 2, 3, 4]), 3)
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    if not grams:
        raise InputError(f"memorization_rate: no text has {n} tokens.")
    wanted = {tuple(map(int, gram)) for gram in grams}
    hashes, known = _hashes_of(wanted, n), set()
    for begin in range(0, len(train_ids), _CHUNK):  # a stream on disk need not fit into memory
        part = np.asarray(train_ids[begin : begin + _CHUNK + n - 1], "int64")
        places = np.flatnonzero(np.isin(_hashes(part, n), hashes))
        known |= {tuple(part[place : place + n].tolist()) for place in places} & wanted
    return sum(tuple(map(int, gram)) in known for gram in grams) / len(grams)


def _grams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _hashes_of(grams, n):
    return np.concatenate([_hashes(np.array(gram, "int64"), n) for gram in grams])


def _hashes(ids, n):
    """A number for each n-gram of ids; equal n-grams have equal ones."""
    count = max(0, len(ids) - n + 1)
    found = np.zeros(count, "uint64")
    for place in range(n):
        part = ids[place : place + count].astype("uint64")
        found = (found * np.uint64(0x9E3779B97F4A7C15)) ^ (found >> np.uint64(29)) ^ part
    return found
