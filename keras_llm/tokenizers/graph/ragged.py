"""Encode ragged parts of texts, each distinct part once."""

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
