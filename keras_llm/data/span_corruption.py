"""Create span corruption batches, as in T5 pre-training."""

from collections.abc import Sequence

import numpy as np

from keras_llm.data.packing import packed_dataset, without_token
from keras_llm.errors import InputError
from keras_llm.types import Dataset


def span_corruption_dataset(
    token_ids: np.ndarray,
    sentinels: Sequence[int],
    sequence_length: int,
    batch_size: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    start_id: int | None = None,
    epochs: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> Dataset:
    """Create windows of a stream of token ids in which sentinels replace spans to predict.

    For a window `a b c d e f` with `b` and `d e` removed, the encoder input is
    `a <0> c <1> f <end>` and the decoder target `<0> b <1> d e <end>`. Every window loses the same
    number of tokens in the same number of spans with uniformly drawn lengths and places, so
    nothing is padded. All random draws are a pure function of (seed, epoch, step).

    Args:
        token_ids: int array (N,) from `encode_documents`, in memory or an `np.memmap`.
        sentinels: ints, the tokens that replace the first, second ... span of a window.
        sequence_length: int. T, the encoder length, including the end token.
        batch_size: int > 0. B.
        bos_id: int, the begin token, which is removed from the stream.
        eos_id, pad_id: int, the end token and padding.
        start_id: int, the first decoder token. Defaults to `pad_id`, as in T5.
        epochs: int > 0. Number of passes in the dataset.
        seed: int >= 0.
        shuffle: bool. Whether each epoch shuffles the windows.
        rate: float in (0, 1), the share of removed tokens.
        mean_span: float >= 1, the mean length of a span.

    Returns:
        `tf.data.Dataset` of pairs. The first is a dict of `encoder_token_ids` int32 (B, T) and
        `decoder_token_ids` int32 (B, M), the second is int32 (B, M), the decoder targets.

    Raises:
        InputError: if an argument is out of range, there are fewer sentinels than spans, or the
            stream is shorter than one batch.

    Reference:
        Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
        Text-to-Text Transformer", section 3.1.4.
    """
    import tensorflow as tf

    if not 0 < rate < 1:
        raise InputError(f"`rate` must be in (0, 1), got {rate}.")
    if mean_span < 1:
        raise InputError(f"`mean_span` must be at least 1, got {mean_span}.")
    room, hidden, spans = _sizes(sequence_length, rate, mean_span)
    if spans > len(sentinels):
        raise InputError(
            f"`sentinels` must be at least {spans} token ids, one for each span of a window, got "
            f"{len(sentinels)}."
        )
    stream = without_token(token_ids, bos_id)
    windows = packed_dataset(
        stream, room, batch_size, -1, pad_id, epochs, seed if shuffle else None
    )
    marks = tf.constant(list(sentinels)[:spans], tf.int32)
    begin = pad_id if start_id is None else start_id

    def corrupted(step, batch):
        ids = batch[0]
        seeds = tf.random.experimental.stateless_split(tf.stack([tf.cast(seed, tf.int64), step]), 2)
        kept = _parts(room - hidden, spans, tf.shape(ids)[0], seeds[0])
        left = _parts(hidden, spans, tf.shape(ids)[0], seeds[1])
        ends = tf.cumsum(tf.reshape(tf.stack([kept, left], axis=2), (-1, 2 * spans)), axis=1)
        places = tf.broadcast_to(tf.range(room), tf.shape(ids))
        part = tf.searchsorted(ends, places, side="right")
        is_first = tf.concat([part[:, :1] >= 0, part[:, 1:] != part[:, :-1]], axis=1)
        is_left = part % 2 == 1
        marked = tf.where(is_first, tf.gather(marks, part // 2), ids)
        source = _picked(tf.where(is_left, marked, ids), ~is_left | is_first, eos_id)
        target = _picked(tf.where(is_left, ids, marked), is_left | is_first, eos_id)
        shifted = tf.pad(target[:, :-1], [[0, 0], [1, 0]], constant_values=begin)
        return {"encoder_token_ids": source, "decoder_token_ids": shifted}, target

    return windows.enumerate().map(corrupted, num_parallel_calls=2, deterministic=True).prefetch(2)


def _sizes(sequence_length, rate, mean_span):
    """Return the longest window that fits the encoder, and its numbers of removed tokens and spans.

    Raises:
        InputError: if no window fits.
    """

    def sizes(room):
        hidden = min(max(1, round(room * rate)), room - 1)
        return hidden, min(max(1, round(hidden / mean_span)), room - hidden)

    fits = None
    for room in range(2, int(sequence_length / (1 - rate)) + 3):
        hidden, spans = sizes(room)
        if room - hidden + spans + 1 <= sequence_length:
            fits = room, hidden, spans
    if fits is None:
        raise InputError(f"`sequence_length` of {sequence_length} has no room for text.")
    return fits


def _parts(total, count, rows, seed):
    """Split `total` uniformly into `count` non-empty parts: int32 (B, count)."""
    import tensorflow as tf

    draws = tf.random.stateless_uniform((rows, total - 1), seed)
    cuts = tf.sort(tf.math.top_k(draws, count - 1).indices + 1, axis=1)
    cuts = tf.pad(cuts, [[0, 0], [1, 0]])
    ends = tf.concat([cuts[:, 1:], tf.fill((rows, 1), total)], axis=1)
    return ends - cuts


def _picked(ids, kept, eos_id):
    """Select the kept tokens of each row, the same number per row, and append an end token."""
    import tensorflow as tf

    rows = tf.reshape(tf.boolean_mask(ids, kept), (tf.shape(ids)[0], -1))
    return tf.pad(rows, [[0, 0], [0, 1]], constant_values=eos_id)
