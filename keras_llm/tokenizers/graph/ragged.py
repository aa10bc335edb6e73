"""Encode ragged parts of texts, each distinct part once, and texts with special tokens."""

import re
from collections.abc import Callable

from keras_llm.types import Tensor

_CUT = b"\xff"  # never occurs in UTF-8


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


def encode_with_special(
    strings: Tensor, special_tokens: dict[str, int], encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Encode texts that contain special tokens.

    Args:
        strings: string tensor (B,) of UTF-8.
        special_tokens: dict str -> id. If two match at the same place, the longer one applies.
        encode: function from the strings (U,) between special tokens, each a separate text, to an
            int32 `tf.RaggedTensor` (U, None).

    Returns:
        Int32 `tf.RaggedTensor` (B, None).
    """
    import tensorflow as tf

    if not special_tokens:
        return encode(strings)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    strings = tf.strings.regex_replace(strings, f"({pattern})", _CUT + rb"\1" + _CUT)
    parts = tf.strings.split(strings, _CUT)
    parts = tf.ragged.boolean_mask(parts, parts != "")
    matches = tf.expand_dims(parts.values, 1) == tf.constant(longest_first)
    is_special = tf.reduce_any(matches, axis=1)
    ids = tf.constant([special_tokens[token] for token in longest_first], tf.int32)
    part_ids = tf.gather(ids, tf.argmax(tf.cast(matches, tf.int32), axis=1))
    single = tf.RaggedTensor.from_uniform_row_length(tf.boolean_mask(part_ids, is_special), 1)
    others = encode(tf.boolean_mask(parts.values, ~is_special))
    return parts.with_values(merge_by(is_special, single, others)).merge_dims(1, 2)
