"""Encode ragged parts of texts, each distinct part once, and repeat and select values."""

from collections.abc import Callable

from keras_llm.types import Tensor


def encode_distinct(parts: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode each distinct part of ragged texts once.

    Args:
        parts: string `tf.RaggedTensor` (B, None).
        encode: function from distinct strings (U,) to an int32 `tf.RaggedTensor` (U, None).

    Returns:
        Int32 `tf.RaggedTensor` (B, None), the concatenated ids of each text's parts.
    """
    import tensorflow as tf

    distinct, index = tf.unique(parts.values)
    return parts.with_values(tf.gather(encode(distinct), index)).merge_dims(1, 2)


def repeat(values: Tensor, counts: Tensor) -> Tensor:
    """Repeat each value (N, ...) by its count, int (N,).

    The result is that of `tf.repeat`, which allocates N times the largest count.
    """
    import tensorflow as tf

    return tf.gather(values, row_ids(counts))


def row_ids(lengths: Tensor) -> Tensor:
    """Return the row of each value of a ragged tensor with rows of `lengths`, int (N,)."""
    import tensorflow as tf

    starts = tf.cumsum(lengths, exclusive=True)
    begun = tf.math.unsorted_segment_sum(tf.ones_like(lengths), starts, tf.reduce_sum(lengths) + 1)
    return tf.cumsum(begun)[:-1] - 1


def select(parts: Tensor, mask: Tensor) -> Tensor:
    """Keep the values of a `tf.RaggedTensor` (B, None) where the mask, bool (N,), is True.

    The result is that of `tf.ragged.boolean_mask`, which allocates B times the longest row.
    """
    import tensorflow as tf

    counts = tf.pad(tf.cumsum(tf.cast(mask, parts.row_splits.dtype)), [[1, 0]])
    splits = tf.gather(counts, parts.row_splits)
    return tf.RaggedTensor.from_row_splits(tf.boolean_mask(parts.values, mask), splits)


def merge_by(mask: Tensor, where_true: Tensor, where_false: Tensor) -> Tensor:
    """Interleave the rows of two ragged tensors.

    Args:
        mask: bool (U,).
        where_true, where_false: `tf.RaggedTensor`s with one row per True and per False.

    Returns:
        A `tf.RaggedTensor` of U rows.
    """
    import tensorflow as tf

    chosen = tf.cast(mask, tf.int32)
    first = tf.cumsum(chosen) - 1
    later = tf.reduce_sum(chosen) + tf.cumsum(1 - chosen) - 1
    return tf.gather(tf.concat([where_true, where_false], axis=0), tf.where(mask, first, later))
