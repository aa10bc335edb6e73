"""Rearrange windows for fill-in-the-middle training of causal models."""

from collections.abc import Sequence

import numpy as np

from keras_llm.data.packing import packed_dataset
from keras_llm.errors import InputError
from keras_llm.types import Dataset

_ADDED = 4  # three sentinels and an end token


def infilling_dataset(
    token_ids: np.ndarray,
    sentinels: Sequence[int],
    sequence_length: int,
    batch_size: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    epochs: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    rate: float = 0.5,
) -> Dataset:
    """Create windows of a stream of token ids, some of them with their middle moved to the end.

    In a selected window, the longest span of a single document is split at two uniformly drawn
    places, and `a b c` becomes `<prefix> a <suffix> c <middle> b <end>`; the rest of the window
    stays around it. Other windows are unchanged. The loss ignores sentinels, which are always
    given, and begin tokens. All random draws are a pure function of (seed, epoch, step).

    Args:
        token_ids: int array (N,) from `encode_documents`, in memory or an `np.memmap`.
        sentinels: three ints, the prefix, suffix and middle tokens, see
            `tokenizers.infilling_tokens`.
        sequence_length: int > 3. T.
        batch_size: int > 0. B.
        bos_id, eos_id: int, the begin and the end token.
        pad_id: int, the target to ignore and the padding of unselected windows.
        epochs: int > 0. Number of passes in the dataset.
        seed: int >= 0.
        shuffle: bool. Whether each epoch shuffles the windows.
        rate: float in [0, 1], the share of selected windows.

    Returns:
        `tf.data.Dataset` of pairs of int32 tensors (B, T): inputs, and targets shifted by one.

    Raises:
        InputError: if an argument is out of range, or the stream is shorter than one batch.

    Reference:
        Bavarian et al., 2022, "Efficient Training of Language Models to Fill in the Middle":
        context-level, prefix-suffix-middle order.
    """
    import tensorflow as tf

    if not 0 <= rate <= 1:
        raise InputError(f"`rate` must be in [0, 1], got {rate}.")
    if len(set(sentinels)) != 3 or min(sentinels) < 0:
        raise InputError(f"`sentinels` must be three token ids, got {sentinels!r}.")
    room = sequence_length + 1 - _ADDED
    if room < 1:
        raise InputError(f"`sequence_length` of {sequence_length} has no room for text.")
    windows = packed_dataset(
        token_ids, room, batch_size, -1, pad_id, epochs, seed if shuffle else None
    )
    ignored_ids = tf.constant([bos_id, *sentinels])

    def rearranged(step, batch):
        ids = batch[0]
        seeds = tf.random.experimental.stateless_split(tf.stack([tf.cast(seed, tf.int64), step]), 2)
        begin, end = _longest_text((ids != bos_id) & (ids != eos_id))
        chosen = tf.random.stateless_uniform(tf.shape(begin), seeds[0]) < rate
        draws = tf.random.stateless_uniform((tf.size(begin), 2), seeds[1])
        length = tf.cast(end - begin + 1, tf.float32)
        cuts = begin[:, tf.newaxis] + tf.cast(draws * length[:, tf.newaxis], tf.int32)
        cuts = tf.sort(tf.minimum(cuts, end[:, tf.newaxis]), axis=1)
        moved = _moved(ids, begin, cuts[:, 0], cuts[:, 1], end, [*sentinels, eos_id], pad_id)
        unchanged = tf.pad(ids, [[0, 0], [0, _ADDED]], constant_values=pad_id)
        ids = tf.where((chosen & (end > begin))[:, tf.newaxis], moved, unchanged)
        targets = ids[:, 1:]
        ignored = tf.reduce_any(targets[..., tf.newaxis] == ignored_ids, axis=-1)
        return ids[:, :-1], tf.where(ignored, pad_id, targets)

    return windows.enumerate().map(rearranged, num_parallel_calls=2, deterministic=True).prefetch(2)


def _longest_text(is_text):
    """Return the start and end of the longest run of True per row, bool (B, R) -> int32 (B,)."""
    import tensorflow as tf

    rows, size = tf.shape(is_text)[0], tf.shape(is_text)[1]
    runs = tf.cumsum(tf.cast(~is_text, tf.int32), axis=1)
    runs += tf.range(rows)[:, tf.newaxis] * (size + 1)
    lengths = tf.math.unsorted_segment_sum(tf.cast(is_text, tf.int32), runs, rows * (size + 1))
    lengths = tf.where(is_text, tf.gather(lengths, runs), 0)
    begin = tf.argmax(lengths, axis=1, output_type=tf.int32)
    return begin, begin + tf.reduce_max(lengths, axis=1)


def _moved(ids, begin, first, second, end, added, pad_id):
    """Rearrange `[begin, end)` of rows (B, R) as prefix, suffix, middle: int32 (B, R + 4)."""
    import tensorflow as tf

    shape = tf.shape(ids)
    begin, first, second, end = (x[:, tf.newaxis] for x in (begin, first, second, end))
    places = tf.range(shape[1])[tf.newaxis]
    padded = tf.pad(ids, [[0, 0], [0, 1]], constant_values=-1)
    has_end = tf.gather(padded, end[:, 0], batch_dims=1)[:, tf.newaxis] == added[-1]
    shift = tf.where(has_end, _ADDED - 1, _ADDED)  # reuse an existing end token
    shift = tf.where(places < end, 2 - (second - first), shift)
    shift = tf.where(places < second, 3 + end - second, shift)
    shift = tf.where(places < first, 1, shift)
    shift = tf.where(places < begin, 0, shift)
    sentinels = [begin, first + 1, end - (second - first) + 2, end + 3]
    to = tf.concat([places + shift, *sentinels], axis=1)
    values = [ids, *(tf.fill((shape[0], 1), token) for token in added)]
    rows = tf.broadcast_to(tf.range(shape[0])[:, tf.newaxis], tf.shape(to))
    empty = tf.fill((shape[0], shape[1] + _ADDED), pad_id)
    return tf.tensor_scatter_nd_update(
        empty, tf.stack([rows, to], axis=-1), tf.concat(values, axis=1)
    )
