"""Parts of texts that are encoded once, however often they occur."""


def encode_distinct(parts, encode):
    """Encode ragged parts of texts.

    Args:
        parts: string `tf.RaggedTensor` (B, None).
        encode: function from different strings (U,) to an int32 `tf.RaggedTensor` (U, None).

    Returns:
        Int32 `tf.RaggedTensor` (B, None), the ids of each text's parts one after the other.
    """
    import tensorflow as tf

    different, index = tf.unique(parts.values)
    return parts.with_values(tf.gather(encode(different), index)).merge_dims(1, 2)
