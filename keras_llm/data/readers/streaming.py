"""Corpora larger than memory: documents that are read anew each time they are wanted."""

import array
import collections
import hashlib

import numpy as np

from keras_llm.data.readers.text import held_out_count, rank
from keras_llm.errors import InputError


class StreamedDocuments:
    """Some documents of a corpus, in its order; each iteration reads the corpus again.

    Made by `split_stream`. `len` tells how many there are; 16 bytes of each are in memory.

    Args:
        read: function without arguments that gives the corpus, an iterable of str.
        places: int array (N,), the numbers of the documents in the corpus, in random order.
        sizes: int array (N,), their UTF-8 bytes.
        total: int, how many documents the corpus has.
        fingerprint: str, the same for the same documents.
    """

    def __init__(self, read, places, sizes, total, fingerprint):
        self._read, self._places, self._sizes, self._total = read, places, sizes, total
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self._places)

    def __iter__(self):
        """Yields strs.

        Raises:
            InputError: if the corpus has fewer or more documents than when it was first read.
        """
        wanted = np.zeros(self._total, bool)
        wanted[self._places] = True
        count = 0
        for document in self._read():
            if count < self._total and wanted[count]:
                yield document
            count += 1
        if count != self._total:
            raise InputError(f"the data has changed: {count} documents, there were {self._total}.")

    def sample(self, max_bytes):
        """Documents drawn at random, of at most `max_bytes` of UTF-8, but at least one."""
        count = max(1, _within(self._sizes, max_bytes))
        return StreamedDocuments(
            self._read, self._places[:count], self._sizes[:count], self._total, self.fingerprint
        )


def split_stream(read, held_out=0.1, seed=0, max_bytes=None):
    """`split_documents` for a corpus that need not fit into memory.

    The corpus is read once to know each document by 8 bytes of its hash, so that 16 bytes of it
    are in memory, some 50 for a moment. Which document is on which side, which are repeated and
    which are beyond `max_bytes` is what `split_documents` and `shuffle_documents` would say. (Two
    of a hundred million different documents are taken for the same with a chance of 1 in 3,700.)

    Args:
        read: function without arguments that gives the corpus, an iterable of str, the same each
            time, e.g. `functools.partial(stream_texts, "folder")`.
        held_out: float in (0, 1). The share of documents held out, at least one.
        seed: int.
        max_bytes: float, or None. Use the first documents in the order of `shuffle_documents`, of
            no more UTF-8 than this, but at least two.

    Returns:
        Two `StreamedDocuments`, and a dict from the reason to how many documents were left out:
        "empty", "repeated", "beyond the limit".

    Raises:
        InputError: if there are fewer than two distinct documents, or they cannot be read.

    Example:
    >>> texts = [f"text {i}" for i in range(10)] + ["text 0", " "]
    >>> train, held_out, dropped = split_stream(lambda: texts, held_out=0.2)
    >>> len(train), list(held_out), dropped
    (8, ['text 2', 'text 7'], {'empty': 1, 'repeated': 1})
    """
    ranks, sizes = array.array("Q"), array.array("Q")
    for document in read():
        is_empty = not document.strip()
        ranks.append(0 if is_empty else int.from_bytes(rank(document, seed)[:8], "big"))
        sizes.append(0 if is_empty else len(document.encode()))
    total = len(sizes)
    ranks, sizes = np.asarray(ranks), np.asarray(sizes)
    places = np.flatnonzero(sizes)
    dropped = collections.Counter(empty=total - len(places))
    distinct, first = np.unique(ranks[places], return_index=True)
    dropped["repeated"] = len(places) - len(first)
    places = places[first]
    sizes = sizes[places]
    if max_bytes is not None:
        count = max(2, _within(sizes, max_bytes))
        dropped["beyond the limit"] = max(0, len(places) - count)
        distinct, places, sizes = distinct[:count], places[:count], sizes[:count]
    count = held_out_count(len(places), held_out)
    train, held = (
        StreamedDocuments(
            read,
            places[side],
            sizes[side],
            total,
            hashlib.blake2b(distinct[side].tobytes(), digest_size=16).hexdigest(),
        )
        for side in (slice(count, None), slice(count))
    )
    return train, held, {reason: count for reason, count in dropped.items() if count}


def _within(sizes, max_bytes):
    """How many of the first have no more bytes together."""
    return int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right"))
