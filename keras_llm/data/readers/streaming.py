"""Stream corpora larger than memory, reading the documents again in each pass."""

import array
import collections
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_llm.data.readers.text import held_out_count, rank
from keras_llm.errors import InputError


class StreamedDocuments:
    """A subset of the documents of a corpus, in order; each iteration reads the corpus again.

    Use `split_stream` to build one. `len` returns the number of documents; 16 bytes per document
    are in memory.

    Args:
        read: function without arguments that returns the corpus, an iterable of str.
        places: int array (N,), the indices of the documents in the corpus, in random order.
        sizes: int array (N,), their sizes in UTF-8 bytes.
        total: int, the number of documents in the corpus.
        fingerprint: str, equal for the same documents.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[str]],
        places: np.ndarray,
        sizes: np.ndarray,
        total: int,
        fingerprint: str,
    ) -> None:
        self._read, self._places, self._sizes, self._total = read, places, sizes, total
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Yield strs.

        Raises:
            InputError: if the number of documents in the corpus has changed.
        """
        selected = np.zeros(self._total, bool)
        selected[self._places] = True
        count = 0
        for document in self._read():
            if count < self._total and selected[count]:
                yield document
            count += 1
        if count != self._total:
            raise InputError(
                f"the data has changed: it has {count} documents instead of {self._total}."
            )

    def sample(self, max_bytes: float) -> "StreamedDocuments":
        """Draw documents at random with at most `max_bytes` of UTF-8, but at least one."""
        count = max(1, _within(self._sizes, max_bytes))
        return StreamedDocuments(
            self._read, self._places[:count], self._sizes[:count], self._total, self.fingerprint
        )


def split_stream(
    read: Callable[[], Iterable[str]],
    held_out: float = 0.1,
    seed: int = 0,
    max_bytes: float | None = None,
) -> tuple[StreamedDocuments, StreamedDocuments, dict[str, int]]:
    """Split a corpus that need not fit into memory, as `split_documents` does.

    The corpus is read once to compute an 8-byte hash of each document, so that 16 bytes per
    document are in memory, and temporarily about 50. The split, repeated documents and those beyond
    `max_bytes` are the same as with `split_documents` and `shuffle_documents`. (With a hundred
    million distinct documents, two of them are treated as equal with a probability of 1 in 3,700.)

    Args:
        read: function without arguments that returns the corpus, an iterable of str, the same each
            time, e.g. `functools.partial(stream_texts, "folder")`.
        held_out: float in (0, 1). The share of documents held out, at least one.
        seed: int.
        max_bytes: float, or None. Use only the first documents in the order of
            `shuffle_documents`, up to this many UTF-8 bytes, but at least two.

    Returns:
        Two `StreamedDocuments`, and a dict of the number of dropped documents by reason: "empty",
        "repeated", "beyond the limit".

    Raises:
        InputError: if there are fewer than two distinct documents, or they cannot be read.

    Example:
    >>> texts = [f"text {i}" for i in range(10)] + ["text 0", " "]
    >>> train, held_out, dropped = split_stream(lambda: texts, held_out=0.2)
    >>> len(train), list(held_out), dropped
    (8, ['text 2', 'text 7'], {'empty': 1, 'repeated': 1})
    """
    ranks: Any = array.array("Q")
    sizes: Any = array.array("Q")
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
    """Count how many of the first sizes sum up to at most `max_bytes`."""
    return int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right"))
