"""Create next-sentence prediction batches with masked words, as in BERT pre-training."""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from keras_llm.data.batches import ragged_rows
from keras_llm.data.masking import hider
from keras_llm.errors import InputError, require_list
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import Dataset

_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\s*\n\s*")


class SentencePairs(NamedTuple):
    """Pairs of consecutive passages of whole sentences.

    Attributes:
        first, second: lists of N lists of token ids.
        document: int array (N,), the document index of each pair; ascending.
    """

    first: list[list[int]]
    second: list[list[int]]
    document: np.ndarray


def sentence_pairs(
    documents: Iterable[str], tokenizer: Tokenizer, sequence_length: int
) -> SentencePairs:
    """Split documents into pairs of passages.

    A passage takes as many sentences as fit into half a row; a longer sentence is split.
    Consecutive passages form pairs. A remaining passage is halved, or dropped if it is a single
    sentence.

    Args:
        documents: list of str.
        tokenizer: a `tokenizers.Tokenizer` with a begin and an end token.
        sequence_length: int > 4. T, the length of a row `begin first end second end`.

    Returns:
        `SentencePairs`.

    Raises:
        InputError: if the tokenizer has no begin or end token, `sequence_length` is too small, or
            fewer than two documents have a pair.
    """
    require_list("documents", documents)
    if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
        raise InputError("sentence_pairs: `tokenizer` must have a begin and an end token.")
    room = (sequence_length - 3) // 2
    if room < 1:
        raise InputError(f"`sequence_length` of {sequence_length} has no room for two texts.")
    pairs, owners = [], []
    for number, document in enumerate(documents):
        sentences = [text for text in _END.split(document) if text and text.strip()]
        rows = tokenizer.encode_batch(sentences) if sentences else []
        document_pairs = _paired(_passages(rows, room))
        pairs += document_pairs
        owners += [number] * len(document_pairs)
    if len(set(owners)) < 2:
        raise InputError("sentence_pairs: at least two documents need several sentences.")
    first, second = map(list, zip(*pairs, strict=True))
    return SentencePairs(first, second, np.array(owners))


def sentence_pair_dataset(
    pairs: SentencePairs,
    tokenizer: Tokenizer,
    batch_size: int,
    epochs: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    rate: float = 0.15,
    whole_words: bool = True,
) -> Dataset:
    """Create rows of two passages; in half of them, the second comes from another document.

    Words are masked as in `masked_dataset`. All random draws are a pure function of (seed, epoch,
    step).

    Args:
        pairs: `SentencePairs`.
        tokenizer, epochs, seed, shuffle, rate, whole_words: see `masked_dataset`.
        batch_size: int > 0. B.

    Returns:
        `tf.data.Dataset` of `epochs * (N // B)` pairs. The first is a dict of `token_ids` and
        `segment_ids`, int32 (B, T), `padding_mask`, bool (B, T), and `mask_positions`, int32
        (B, M). The second is a dict of `tokens`, int32 (B, M), the original tokens, and
        `next_sentence`, int32 (B,), 0 if the second passage follows the first and 1 otherwise.

    Raises:
        InputError: if an argument is out of range, or there are fewer pairs than `batch_size`.

    Reference:
        Devlin et al., 2018, "BERT", section 3.1, task 2.
    """
    import tensorflow as tf

    hide = hider("sentence_pair_dataset", tokenizer, rate, whole_words)
    count = len(pairs.first)
    steps = count // batch_size
    if not steps:
        raise InputError(f"{count} pairs are too few for one batch of {batch_size}.")
    first, second = map(ragged_rows, pairs[:2])
    _, place, sizes = np.unique(pairs.document, return_inverse=True, return_counts=True)
    begins = tf.constant((np.cumsum(sizes) - sizes)[place], tf.int64)
    sizes = tf.constant(sizes[place], tf.int64)

    def batch(index):
        epoch, step = index // steps, index % steps
        rows = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        if shuffle:
            rows = tf.random.experimental.index_shuffle(
                rows, seed=tf.stack([tf.constant(seed, tf.int64), epoch]), max_index=count - 1
            )
        place = tf.stack([tf.constant(seed, tf.int64), index])
        seeds = tf.random.experimental.stateless_split(place, 3)
        follows = tf.random.stateless_uniform([batch_size], seeds[0]) < 0.5
        begin, size = tf.gather(begins, rows), tf.gather(sizes, rows)
        # Draw uniformly among the pairs of other documents.
        draws = tf.random.stateless_uniform([batch_size], seeds[1], dtype=tf.float64)
        other = tf.cast(draws * tf.cast(count - size, tf.float64), tf.int64)
        other = tf.where(other < begin, other, other + size)
        head = _framed(tf.gather(first, rows), tokenizer.bos_id, tokenizer.eos_id)
        tail = tf.gather(second, tf.where(follows, rows, other))
        whole = tf.concat([head, _framed(tail, None, tokenizer.eos_id)], axis=1)
        ids = whole.to_tensor(tokenizer.pad_id)
        places = tf.range(tf.shape(ids)[1], dtype=tf.int64)[tf.newaxis]
        is_token = places < whole.row_lengths()[:, tf.newaxis]
        is_second = (places >= head.row_lengths()[:, tf.newaxis]) & is_token
        inputs, tokens = hide(ids, seeds[2])
        inputs |= {"padding_mask": is_token, "segment_ids": tf.cast(is_second, tf.int32)}
        return inputs, {"tokens": tokens, "next_sentence": tf.cast(~follows, tf.int32)}

    dataset = tf.data.Dataset.range(epochs * steps)
    return dataset.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _passages(sentences, room):
    """Group sentences into passages of at most `room` tokens."""
    passages, size = [], room
    for ids in sentences:
        for part in (ids[begin : begin + room] for begin in range(0, len(ids), room)):
            if size + len(part) > room:
                passages.append([])
                size = 0
            passages[-1].append(part)
            size += len(part)
    return passages


def _paired(passages):
    pairs = list(zip(passages[::2], passages[1::2], strict=False))
    if len(passages) % 2 and len(passages[-1]) > 1:
        half = len(passages[-1]) // 2
        pairs.append((passages[-1][:half], passages[-1][half:]))
    return [tuple(list(itertools.chain(*passage)) for passage in pair) for pair in pairs]


def _framed(rows, begin, end):
    import tensorflow as tf

    def column(token):
        return tf.fill([rows.nrows(), 1], token)

    parts = [rows, column(end)] if begin is None else [column(begin), rows, column(end)]
    return tf.concat(parts, axis=1)
