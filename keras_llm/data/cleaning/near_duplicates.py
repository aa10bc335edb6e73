"""Texts that are nearly others, and held-out text that occurs in the training."""

import re

import numpy as np

from keras_llm.errors import InputError

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")  # of Chinese and Japanese, characters
_PERMUTATIONS = 128
_UNKNOWN = 2**64 - 1


def without_near_duplicates(texts, threshold=0.8, words=5, seed=1):
    """Leave out texts that are nearly one that came before.

    Two texts are near duplicates if of all runs of `words` words in either, letter case aside, at
    least `threshold` are in both. Which texts are compared is found by MinHash, which misses few
    pairs near the threshold; that they are alike is then counted exactly.

    Args:
        texts: list of str.
        threshold: float in (0, 1].
        words: int > 0. A text with fewer is one run.
        seed: int, of MinHash.

    Returns:
        The texts that are left, a list in the same order, and a dict like that of `clean_rows`.

    Raises:
        InputError: if an argument is out of range, or datasketch is not installed.

    Example:
    >>> song = "row row row your boat gently down the stream merrily merrily merrily merrily"
    >>> kept, dropped = without_near_duplicates([song, song + " life", "another text"])
    >>> len(kept), dropped
    (2, {'nearly repeated': 1})

    References:
        Broder, 1997, "On the Resemblance and Containment of Documents".
        Lee et al., 2022, "Deduplicating Training Data Makes Language Models Better".
    """
    if not 0 < threshold <= 1:
        raise InputError(f"`threshold` must be in (0, 1], got {threshold}.")
    if words < 1:
        raise InputError(f"`words` must be a positive int, got {words}.")
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise InputError("this needs datasketch: pip install datasketch.") from None
    index = MinHashLSH(0.85 * threshold, _PERMUTATIONS, weights=(0.1, 0.9))  # misses few pairs
    numbers = _Numbers()
    kept, runs = [], []
    for text in texts:
        own = np.unique(numbers.runs(text, words))
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=seed, hashfunc=int)
        sketch.update_batch((own >> np.uint64(32)).tolist())
        if any(_resemblance(own, runs[key]) >= threshold for key in index.query(sketch)):
            continue
        index.insert(len(kept), sketch, check_duplication=False)
        kept.append(text)
        runs.append(own)
    count = len(texts) - len(kept)
    return kept, {"nearly repeated": count} if count else {}


def contamination(train, held_out, words=13):
    """How much of held-out text occurs in the training text.

    Args:
        train: iterable of str, one in memory at a time.
        held_out: list of str; a few numbers for each of its words are in memory.
        words: int > 0, the length of the runs of words that are compared, letter case aside.

    Returns:
        A dict: `texts`, how many held-out texts have a run; `texts_with_a_known_run`;
        `known_runs`, the share of their runs that occur in the training, in [0, 1].

    Raises:
        InputError: if `words` is not positive.

    Reference:
        Brown et al., 2020, "Language Models are Few-Shot Learners", appendix C.
    """
    if words < 1:
        raise InputError(f"`words` must be a positive int, got {words}.")
    numbers = _Numbers()
    parts = [part for text in held_out if len(part := numbers.runs(text, words, short=False))]
    if not parts:
        return {"texts": 0, "texts_with_a_known_run": 0, "known_runs": 0.0}
    runs = np.unique(np.concatenate(parts))
    is_known = np.zeros(len(runs), bool)
    for text in train:
        found = numbers.runs(text, words, short=False, learn=False)
        places = np.searchsorted(runs[:-1], found)
        is_known[places[runs[places] == found]] = True
    hits = [int(is_known[np.searchsorted(runs, part)].sum()) for part in parts]
    return {
        "texts": len(parts),
        "texts_with_a_known_run": sum(count > 0 for count in hits),
        "known_runs": sum(hits) / sum(map(len, parts)),
    }


class _Numbers:
    """A number for each word, and for each run of words one that looks drawn at random."""

    def __init__(self):
        self._known = {}

    def runs(self, text, words, short=True, learn=True):
        """The numbers of a text's runs, uint64 (N,); of one with fewer words, with `short`, one.
        Without `learn` all words that were not met before have one number."""
        known, found = self._known, _WORD.findall(text.casefold())
        if learn:
            ids = [known.setdefault(word, len(known)) for word in found]
        else:
            ids = [known.get(word, _UNKNOWN) for word in found]
        if short and len(ids) < words:
            words = max(1, len(ids))
        count = max(0, len(ids) - words + 1)
        ids = np.array(ids, "uint64")
        found = np.full(count, words, "uint64")
        for place in range(words):
            found = _mixed(found ^ ids[place : place + count])
        return found


def _mixed(x):
    """A bijection of 64 bits whose outputs look drawn at random (the finaliser of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _resemblance(first, second):
    both = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - both
    return both / either if either else 1.0
