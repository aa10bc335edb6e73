"""The key-value cache of one attention layer.

A cache is a pair `(key, value)` of float tensors (B, K, S, H): for each row and key-value head,
slot `s` holds the features of the token at position `s` of that row. Slots past a row's own
position hold nothing of meaning; `causal_mask` keeps queries from them, so ragged rows need no
other bookkeeping than their positions. The layout lets `q k^T` read the cache without moving it.
"""

from keras import ops


def empty_cache(batch_size, length, num_key_value_heads, head_dim, dtype="float32"):
    """A pair of zero tensors (B, K, S, H); `batch_size` and `length` may be scalar tensors."""
    shape = (batch_size, num_key_value_heads, length, head_dim)
    return ops.zeros(shape, dtype=dtype), ops.zeros(shape, dtype=dtype)


def update_cache(cache, new, index):
    """Write new features into the cache.

    Args:
        cache: float tensor (B, K, S, H), keys or values.
        new: float tensor (B, K, T, H).
        index: int tensor, the slot of `new`'s first element: a scalar for all rows, or (B,)
            with a slot for each row, for which T must be 1.

    Returns:
        Float tensor (B, K, S, H).

    Raises:
        ValueError: if `index` is (B,) and T is not 1.
    """
    new = ops.cast(new, cache.dtype)
    index = ops.convert_to_tensor(index, "int32")
    if len(index.shape) == 0:
        return ops.slice_update(cache, (0, 0, index, 0), new)
    if new.shape[2] != 1:
        raise ValueError(
            "A cache index for each row takes one new token a row, "
            f"got `new` of shape {tuple(new.shape)}."
        )
    batch_size, heads = ops.shape(cache)[0], cache.shape[1]
    row = ops.repeat(ops.arange(batch_size, dtype="int32"), heads)
    head = ops.tile(ops.arange(heads, dtype="int32"), [batch_size])
    slot = ops.repeat(index, heads)
    return ops.scatter_update(
        cache, ops.stack([row, head, slot], axis=-1), ops.reshape(new, (-1, cache.shape[3]))
    )
