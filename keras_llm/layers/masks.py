"""Build attention masks: boolean, True = the query may attend to the key."""

from keras import ops

from keras_llm.types import Tensor


def causal_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Build a mask that hides the keys after the query.

    Args:
        query_positions: int tensor (T,) or (B, T).
        key_positions: int tensor (S,) or (B, S).

    Returns:
        Bool tensor (1, T, S) or (B, T, S).
    """
    return _pairwise(ops.less_equal, query_positions, key_positions)


def band_mask(
    query_positions: Tensor, key_positions: Tensor, sliding_window: int, num_sink_tokens: int = 0
) -> Tensor:
    """Build a mask that hides keys at least `sliding_window` positions away, except sinks.

    Together with `causal_mask`, a query sees itself and the `sliding_window - 1` positions
    before it.

    Args:
        query_positions: int tensor (T,) or (B, T).
        key_positions: int tensor (S,) or (B, S).
        sliding_window: int > 0.
        num_sink_tokens: int. The number of first positions, which every query sees.

    Returns:
        Bool tensor (1, T, S) or (B, T, S).
    """

    def near(key, query):
        inside = ops.less(ops.abs(key - query), sliding_window)
        if num_sink_tokens:
            inside = ops.logical_or(inside, ops.less(key, num_sink_tokens))
        return inside

    return _pairwise(near, query_positions, key_positions)


def padding_mask(mask: Tensor | None) -> Tensor | None:
    """Expand a key mask, (B, S) with True = a real token, to (B, 1, S); None stays None.

    Raises:
        ValueError: if `mask` does not have two axes.
    """
    if mask is None:
        return None
    if len(mask.shape) != 2:
        raise ValueError(f"`padding_mask` must have shape (B, S), got {tuple(mask.shape)}.")
    return ops.expand_dims(ops.cast(mask, "bool"), 1)


def merge(*masks: Tensor | None) -> Tensor | None:
    """Combine masks with a logical and; `None` allows all, and without any mask return `None`."""
    merged = None
    for mask in masks:
        if mask is not None:
            mask = ops.cast(mask, "bool")
            merged = mask if merged is None else ops.logical_and(merged, mask)
    return merged


def _pairwise(compare, query_positions, key_positions):
    def rows(positions, axis):
        if len(positions.shape) == 1:
            positions = ops.expand_dims(positions, 0)
        return ops.expand_dims(ops.cast(positions, "int32"), axis)

    return compare(rows(key_positions, 1), rows(query_positions, 2))
