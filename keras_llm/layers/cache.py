"""Create and update the key-value cache of an attention layer.

A cache is a pair `(key, value)` of float tensors (B, K, S, H): for each row and key-value head, a
slot holds the features of one token of that row. With this layout, `q k^T` reads the cache without
a transpose.

In a full cache, slot `s` holds position `s`. Slots past a row's current position hold undefined
values; `causal_mask` hides them from queries, so ragged rows need only their positions. In the
ring cache of a sliding-window layer, a new token overwrites the one that just left the window, so
S need not exceed the window; the row's last position alone determines which position each slot
holds.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_llm.types import Tensor


def empty_cache(
    batch_size: int | Tensor,
    length: int | Tensor,
    num_key_value_heads: int,
    head_dim: int,
    dtype: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Return a pair of zero tensors (B, K, S, H); `batch_size` and `length` may be tensors."""
    shape = (batch_size, num_key_value_heads, length, head_dim)
    return ops.zeros(shape, dtype=dtype), ops.zeros(shape, dtype=dtype)


def update_cache(cache: Tensor, new: Tensor, index: int | Tensor) -> Tensor:
    """Write new features into the cache.

    Args:
        cache: float tensor (B, K, S, H), keys or values.
        new: float tensor (B, K, T, H).
        index: int tensor, the slot of the first element of `new`: a scalar for all rows, or (B,)
            with one slot per row. The int 0 avoids an operation that TensorFlow supports only in
            its XLA compiler.

    Returns:
        Float tensor (B, K, S, H).
    """
    new = ops.cast(new, cache.dtype)
    if isinstance(index, int) and index == 0:
        return ops.concatenate([new, cache[:, :, ops.shape(new)[2] :]], axis=2)
    index = ops.convert_to_tensor(index, "int32")
    if len(index.shape) == 0:
        return ops.slice_update(cache, (0, 0, index, 0), new)
    batch_size, _, length, features = ops.shape(new)
    # Few operations: this is traced for keys and values of every layer.
    zeros = ops.zeros_like(new[..., 0], dtype="int32")
    row = zeros + ops.reshape(ops.arange(batch_size, dtype="int32"), (-1, 1, 1))
    head = zeros + np.arange(cache.shape[1], dtype="int32")[:, None]
    slot = zeros + (ops.reshape(index, (-1, 1, 1)) + ops.arange(length, dtype="int32"))
    places = ops.reshape(ops.stack([row, head, slot], axis=-1), (-1, 3))
    return ops.scatter_update(cache, places, ops.reshape(new, (-1, features)))


def slot_mask(
    padding_mask: Tensor | None,
    cache: tuple[Tensor, Tensor],
    new: Sequence[Tensor],
    index: int | Tensor | None,
    width: int | None = None,
) -> Tensor | None:
    """Expand a mask of new tokens to the slots of a full cache; all other slots are visible.

    Args:
        padding_mask: bool tensor (B, T), True = a real token; or (B, S), which covers all slots
            and is not expanded; or None.
        cache: pair of float tensors (B, K, S, H).
        new: pair of float tensors (B, K, T, H), the keys and values that are written, or ().
        index: as in `update_cache`; None without `new`.
        width: as in `first_slots`.

    Returns:
        Bool tensor (B, S), or of the slots that `first_slots` returns; None without a mask.

    Raises:
        ValueError: if the mask covers neither the new tokens nor all slots.
    """
    if padding_mask is None:
        return None
    _check_width(padding_mask, *new[:1], cache[0])
    if new:
        padding_mask = _of_all_slots(padding_mask, cache[0], new[0], index)
    return padding_mask[:, :width] if _is_narrower(width, cache[0]) else padding_mask


def _of_all_slots(padding_mask, cache, new, index):
    """Return a mask (B, T) or (B, S) as one of all slots (B, S), T or S unknown until it runs."""
    mask_length, num_slots = ops.shape(padding_mask)[1], ops.shape(cache)[2]

    def expanded():
        visible = ops.ones((ops.shape(padding_mask)[0], 1, num_slots, 1), dtype="int32")
        visible = update_cache(visible, ops.expand_dims(padding_mask, (1, 3)), index)
        return ops.squeeze(visible, (1, 3))

    if isinstance(mask_length, int) and isinstance(num_slots, int):
        return padding_mask if mask_length == num_slots else expanded()
    if isinstance(mask_length, int) and isinstance(new.shape[2], int):
        return expanded() if mask_length == new.shape[2] else padding_mask
    covers_slots = ops.equal(mask_length, num_slots)
    return ops.cond(covers_slots, lambda: ops.cast(padding_mask, "int32"), expanded)


def _check_width(padding_mask, *entries):
    """Raise ValueError if a mask (B, W) has the length of none of the entries (B, K, W, H)."""
    lengths = [entry.shape[2] for entry in entries]
    if None not in (*lengths, padding_mask.shape[1]) and padding_mask.shape[1] not in lengths:
        raise ValueError(
            f"`padding_mask` must cover {' or '.join(map(str, lengths))} tokens, got shape "
            f"{tuple(padding_mask.shape)}."
        )


def ring_positions(last: Tensor, num_slots: int | Tensor, num_sink_tokens: int = 0) -> Tensor:
    """Compute the position that each slot of a ring cache holds.

    A sink position `p < num_sink_tokens` is in slot `p`. Any other position is in the slot
    congruent to it modulo the number of remaining slots.

    Args:
        last: int tensor (B, 1), the last position written in each row; -1 if none is written.
        num_slots: int or int scalar tensor. S.
        num_sink_tokens: int. The number of first positions, which are never overwritten.

    Returns:
        Int32 tensor (B, S); -1 for empty slots.
    """
    slots = ops.expand_dims(ops.arange(num_slots, dtype="int32"), 0)
    period = ops.maximum(num_slots - num_sink_tokens, 1)
    held = last - ops.mod(last - slots, period)
    if num_sink_tokens:
        held = ops.where(slots < num_sink_tokens, slots, held)
        empty = (held > last) | ((slots >= num_sink_tokens) & (held < num_sink_tokens))
    else:
        empty = held < 0
    return ops.where(empty, -1, held)


def ring_slot(positions: Tensor, num_slots: int | Tensor, num_sink_tokens: int = 0) -> Tensor:
    """Return the ring cache slot of each position; int tensors of the same shape."""
    period = ops.maximum(num_slots - num_sink_tokens, 1)
    slot = num_sink_tokens + ops.mod(positions - num_sink_tokens, period)
    return ops.where(positions < num_sink_tokens, positions, slot)


def update_ring(cache: Tensor, new: Tensor, first: Tensor, held: Tensor) -> Tensor:
    """Write a chunk of new features into a ring cache.

    Args:
        cache: float tensor (B, K, S, H), keys or values.
        new: float tensor (B, K, T, H).
        first: int tensor (B, 1), the position of each row's first new token.
        held: int tensor (B, S), the position that each slot holds after the update.

    Returns:
        Float tensor (B, K, S, H): new features where `held >= first`, old ones elsewhere.
    """
    index = ops.expand_dims(held - first, (1, 3))
    chosen = ops.take_along_axis(new, ops.clip(index, 0, ops.shape(new)[2] - 1), axis=2)
    return ops.where(index >= 0, ops.cast(chosen, cache.dtype), cache)


def write_ring(
    cache: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    positions: Tensor,
    padding_mask: Tensor | None = None,
    num_sink_tokens: int = 0,
) -> tuple[tuple[Tensor, Tensor], Tensor, tuple[Tensor, Tensor]]:
    """Write new keys and values into a ring cache, and return what their queries attend to.

    Args:
        cache: pair of float tensors (B, K, S, H).
        new: pair of float tensors (B, K, T, H).
        positions: int tensor (T,) or (B, T), those of the new keys.
        padding_mask: bool tensor (B, T), True = a real token, real tokens first; the others are
            not kept. None keeps all.
        num_sink_tokens: int. The number of first positions, which are never overwritten.

    Returns:
        The pair of keys and values that the queries attend to, (B, K, S or S + T, H); their
        positions, int32 (B, S or S + T), -1 for empty slots; and the updated cache.
    """
    batch_size, num_slots = ops.shape(new[0])[0], ops.shape(cache[0])[2]
    if len(positions.shape) == 1:
        positions = ops.expand_dims(positions, 0)
    positions = ops.broadcast_to(
        ops.cast(positions, "int32"), (batch_size, ops.shape(positions)[1])
    )
    if padding_mask is not None:
        _check_width(padding_mask, new[0])
    first = positions[:, :1]
    if new[0].shape[2] == 1 and padding_mask is None:
        slot = ring_slot(first[:, 0], num_slots, num_sink_tokens)
        cache = _pairwise(lambda old, features: update_cache(old, features, slot), cache, new)
        return cache, ring_positions(first, num_slots, num_sink_tokens), cache
    # The chunk may be longer than the ring: attend to old slots and new keys side by side.
    before = ring_positions(first - 1, num_slots, num_sink_tokens)
    attended = _pairwise(
        lambda old, features: ops.concatenate([old, ops.cast(features, old.dtype)], axis=2),
        cache,
        new,
    )
    count = ops.shape(positions)[1]
    if padding_mask is not None:
        count = ops.sum(ops.cast(padding_mask, "int32"), axis=1, keepdims=True)
    held = ring_positions(first + count - 1, num_slots, num_sink_tokens)
    cache = _pairwise(lambda old, features: update_ring(old, features, first, held), cache, new)
    return attended, ops.concatenate([before, positions], axis=1), cache


def first_slots(entry: Tensor, width: int | None) -> Tensor:
    """Return the cache slots (B, K, S, H) that a mask of `width` columns covers.

    A mask narrower than the cache saves the work on the remaining slots. One column (a mask that
    is broadcast) and None stand for all slots.
    """
    return entry[:, :, :width] if _is_narrower(width, entry) else entry


def _is_narrower(width, entry):
    return width not in (None, 1) and (entry.shape[2] is None or width < entry.shape[2])


def _pairwise(function, cache, new):
    """Apply a function to keys and to values, each with the new ones."""
    return function(cache[0], new[0]), function(cache[1], new[1])


def unstack_cache(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a stacked cache of keras_nlp, (B, 2, S, K, H), to a pair of (B, K, S, H)."""
    cache = ops.transpose(cache, (1, 0, 3, 2, 4))
    return cache[0], cache[1]


def stack_cache(cache: tuple[Tensor, Tensor]) -> Tensor:
    """Convert a pair of (B, K, S, H) to a stacked cache of keras_nlp, (B, 2, S, K, H)."""
    return ops.transpose(ops.stack(cache), (1, 0, 3, 2, 4))
