"""Find near-duplicate texts, and held-out text that occurs in the training text."""

import re
from collections.abc import Iterable

import numpy as np

from keras_llm.errors import InputError, require_list

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")  # one character in Chinese and Japanese
_PERMUTATIONS = 128
_UNKNOWN = 2**64 - 1


def without_near_duplicates(
    texts: list[str], threshold: float = 0.8, words: int = 5, seed: int = 1
) -> tuple[list[str], dict[str, int]]:
    """Drop texts that are nearly equal to an earlier one.

    Two texts are near duplicates if they share at least `threshold` of all distinct runs of `words`
    words in either, ignoring letter case (Jaccard similarity). MinHash selects the pairs to
    compare and misses few pairs near the threshold; the similarity is then computed exactly.

    Args:
        texts: list of str.
        threshold: float in (0, 1].
        words: int > 0. A shorter text is a single run.
        seed: int, the seed of MinHash.

    Returns:
        The remaining texts, a list in the same order, and a dict like that of `clean_rows`.

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
    require_list("texts", texts)
    if not 0 < threshold <= 1:
        raise InputError(f"`threshold` must be in (0, 1], got {threshold}.")
    if words < 1:
        raise InputError(f"`words` must be a positive int, got {words}.")
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise InputError(
            "without_near_duplicates needs datasketch: pip install datasketch."
        ) from None
    index = MinHashLSH(0.85 * threshold, _PERMUTATIONS, weights=(0.1, 0.9))  # favors recall
    numbers = _Numbers()
    kept: list[str] = []
    runs: list[np.ndarray] = []
    for text in texts:
        text_runs = np.unique(numbers.runs(text, words))
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=seed, hashfunc=int)
        sketch.update_batch((text_runs >> np.uint64(32)).tolist())
        if any(_resemblance(text_runs, runs[key]) >= threshold for key in index.query(sketch)):
            continue
        index.insert(len(kept), sketch, check_duplication=False)
        kept.append(text)
        runs.append(text_runs)
    count = len(texts) - len(kept)
    return kept, {"nearly repeated": count} if count else {}


def contamination(
    train: Iterable[str], held_out: Iterable[str], words: int = 13
) -> dict[str, int | float]:
    """Measure how much of the held-out text occurs in the training text.

    Args:
        train: iterable of str, of which one is in memory at a time.
        held_out: list of str, of which a few numbers per word are in memory.
        words: int > 0, the length of the compared runs of words, ignoring letter case.

    Returns:
        A dict: `texts`, the number of held-out texts with at least one run;
        `texts_with_a_known_run`; `known_runs`, the share of their runs that occur in the training
        text, in [0, 1].

    Raises:
        InputError: if `words` is not positive.

    Reference:
        Brown et al., 2020, "Language Models are Few-Shot Learners", appendix C.
    """
    require_list("train", train)
    require_list("held_out", held_out)
    if words < 1:
        raise InputError(f"`words` must be a positive int, got {words}.")
    numbers = _Numbers()
    parts = [part for text in held_out if len(part := numbers.runs(text, words, short=False))]
    if not parts:
        return {"texts": 0, "texts_with_a_known_run": 0, "known_runs": 0.0}
    runs = np.unique(np.concatenate(parts))
    is_known = np.zeros(len(runs), bool)
    for text in train:
        text_runs = numbers.runs(text, words, short=False, learn=False)
        places = np.searchsorted(runs[:-1], text_runs)
        is_known[places[runs[places] == text_runs]] = True
    hits = [int(is_known[np.searchsorted(runs, part)].sum()) for part in parts]
    return {
        "texts": len(parts),
        "texts_with_a_known_run": sum(count > 0 for count in hits),
        "known_runs": sum(hits) / sum(map(len, parts)),
    }


class _Numbers:
    """Numbers for words, and hashes for runs of words."""

    def __init__(self):
        self._ids = {}

    def runs(self, text, words, short=True, learn=True):
        """Return the hashes of a text's runs, uint64 (N,).

        With `short`, a text with fewer words is one run. Without `learn`, all new words share one
        number.
        """
        text_words = _WORD.findall(text.casefold())
        if learn:
            ids = [self._ids.setdefault(word, len(self._ids)) for word in text_words]
        else:
            ids = [self._ids.get(word, _UNKNOWN) for word in text_words]
        if short and len(ids) < words:
            words = max(1, len(ids))
        count = max(0, len(ids) - words + 1)
        ids = np.array(ids, "uint64")
        hashes = np.full(count, words, "uint64")
        for place in range(words):
            hashes = _mixed(hashes ^ ids[place : place + count])
        return hashes


def _mixed(x):
    """Hash 64 bits bijectively (the finalizer of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _resemblance(first, second):
    both = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - both
    return both / either if either else 1.0
