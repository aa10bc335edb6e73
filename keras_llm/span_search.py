"""Find the best answer span in the logits of overlapping windows, in NumPy or in a graph.

Functions with the argument `xp` take the array module, `numpy` or `keras.ops`, so that the LiteRT
runtime, which has no Keras, and exported graphs run the same code.
"""

from types import ModuleType
from typing import Any, NamedTuple

_NEVER = -1e9


class Span(NamedTuple):
    """The best span of each row; fields are arrays (B,).

    Attributes:
        window: int, the index of the window.
        start: int, the position of its first token in the window; 0 if the answer is empty.
        length: int, the number of tokens after the first.
        log_probability: float, the log-probability of start and end, under a softmax over the
            context tokens of the window and, if the answer may be empty, its first token.
        is_empty: bool, whether the empty span scores at least as high.
    """

    window: Any
    start: Any
    length: Any
    log_probability: Any
    is_empty: Any


def window_step(room: Any) -> Any:
    """Return the stride between windows of `room` tokens."""
    return room - room // 2


def window_starts(length: int, room: int) -> range:
    """Return the tokens of a context at which its windows of `room` tokens start."""
    return range(0, max(1, length - room // 2), window_step(room))


def best_span(
    xp: ModuleType, start: Any, end: Any, is_context: Any, longest: int, unanswerable: bool
) -> Span:
    """Find the span with the highest sum of start and end logits over the windows of each row.

    The empty span is the first token of a window. It is the answer if no other span scores higher
    than its lowest score over all windows.

    Args:
        xp: module, `numpy` or `keras.ops`.
        start, end: float32 (B, W, T), logits of T positions in W windows.
        is_context: bool (B, W, T), the positions that a span may cover. They are contiguous in a
            window; a row may have fewer than W windows with any.
        longest: int > 0. The maximum number of tokens of a span.
        unanswerable: bool. Whether the answer may be empty.

    Returns:
        A `Span`. The span of a row without any context is undefined.
    """
    masked = [xp.where(is_context, side, _NEVER) for side in (start, end)]
    score, length = _best_ends(xp, masked[0], masked[1], longest)
    rows, _, width = xp.shape(start)
    score, length = xp.reshape(score, (rows, -1)), xp.reshape(length, (rows, -1))
    best = _argmax(xp, score)  # index over windows and positions
    window, first, length = best // width, best % width, _pick(xp, length, best)
    is_empty = xp.zeros_like(best, dtype="bool")
    if unanswerable:
        empty = start[:, :, 0] + end[:, :, 0]
        empty = xp.where(xp.any(is_context, axis=2), -empty, _NEVER)
        is_empty = -xp.max(empty, axis=1) >= xp.max(score, axis=1)
        window = xp.where(is_empty, _argmax(xp, empty), window)
        first, length = (xp.where(is_empty, 0, x) for x in (first, length))
        is_possible = is_context | (xp.arange(width) == 0)
        masked = [xp.where(is_possible, side, _NEVER) for side in (start, end)]
    log_probability = sum(
        _log_softmax_at(xp, side, window, position)
        for side, position in zip(masked, (first, first + length), strict=True)
    )
    return Span(window, first, length, log_probability, is_empty)


def _best_ends(xp, start, end, longest):
    """Find the best span of at most `longest` tokens from each start.

    Returns:
        Its score and its length minus 1, both (B, W, T).
    """
    best, length = start + end, xp.zeros_like(start, dtype="int32")
    for more in range(1, longest):
        padding = xp.full_like(end[:, :, :more], _NEVER)
        score = start + xp.concatenate([end[:, :, more:], padding], axis=-1)
        length = xp.where(score > best, more, length)
        best = xp.maximum(score, best)
    return best, length


def _log_softmax_at(xp, logits, window, position):
    """Return the log-probability (B,) of a position under the softmax over its window (B, W, T)."""
    index = xp.reshape(window, (-1, 1, 1))
    chosen = xp.squeeze(xp.take_along_axis(logits, index, axis=1), 1)
    chosen = chosen - xp.max(chosen, axis=1, keepdims=True)
    return _pick(xp, chosen, position) - xp.log(xp.sum(xp.exp(chosen), axis=1))


def _argmax(xp, x):
    return xp.array(xp.argmax(x, axis=1), dtype="int32")


def _pick(xp, x, index):
    """Gather x (B, N) at index (B,): (B,)."""
    return xp.squeeze(xp.take_along_axis(x, xp.expand_dims(index, 1), axis=1), 1)
