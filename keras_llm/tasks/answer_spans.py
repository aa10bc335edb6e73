"""Find the best answer span in a context, with overlapping windows over long contexts.

Uses dense tensors only, so that tasks in Python and exported graphs run the same code.
"""

from typing import TYPE_CHECKING

from keras import ops

from keras_llm.types import Tensor

if TYPE_CHECKING:
    from keras_llm.tasks.question_answering import QuestionAnswering

_NEVER = -1e9


def best_spans(
    task: "QuestionAnswering",
    question_ids: Tensor,
    question_lengths: Tensor,
    context_ids: Tensor,
    context_lengths: Tensor,
) -> dict[str, Tensor]:
    """Find the most likely span of each context.

    A window is `begin question separators context-part end`. A context that does not fit into one
    window is split into overlapping windows; each starts half a context part after the one before.

    The empty span is the begin token of a window. With `task.unanswerable`, the answer is empty
    unless a span scores higher than the lowest score of the empty span over all windows.

    Args:
        task: a `QuestionAnswering`.
        question_ids: int32 (B, Q), padded on the right.
        question_lengths: int32 (B,), in `0 .. task.question_room`.
        context_ids: int32 (B, C), padded on the right; C > 0.
        context_lengths: int32 (B,).

    Returns:
        A dict: `start` and `end`, int32 (B,), the first and last token of the span, as indices into
        the context; `probability`, float32 (B,), the product of the start and end probabilities,
        under a softmax over the context tokens of the window and, if the answer may be empty, its
        begin token; `found`, bool (B,), False if the context or the span is empty.
    """
    room = task.pair_room - question_lengths
    step = room - room // 2
    counts = 1 + ops.maximum(context_lengths - room + step - 1, 0) // step
    rows = ops.shape(question_ids)[0]
    first = ops.expand_dims(ops.arange(ops.max(counts), dtype="int32"), 0) * column(step)
    taken = ops.clip(column(context_lengths) - first, 0, column(room))
    taken = ops.where(first < column(counts * step), taken, 0)  # (B, W)
    token_ids, lengths, context_begin = _windows(
        task, question_ids, question_lengths, context_ids, first, taken
    )
    width = ops.shape(token_ids)[2]
    positions = ops.arange(width, dtype="int32")
    is_context = (positions >= context_begin) & (
        positions < context_begin + ops.expand_dims(taken, -1)
    )  # (B, W, T)
    flat = (-1, width)
    is_second = ops.cast(positions >= context_begin, "int32") + ops.zeros_like(token_ids)
    logits = task.outputs(
        ops.reshape(token_ids, flat),
        ops.reshape(lengths, (-1,)),
        segment_ids=ops.reshape(is_second, flat),
    )
    sides = [ops.reshape(logits[name], ops.shape(token_ids)) for name in ("start", "end")]
    start, end = (ops.where(is_context, side, _NEVER) for side in sides)
    score, length = _best_ends(start, end, task.longest_answer)
    score = ops.reshape(score, (rows, -1))
    best = ops.cast(ops.argmax(score, axis=1), "int32")  # index over windows and positions
    window, position = best // width, best % width
    length = _pick(ops.reshape(length, (rows, -1)), best)
    begin = _pick(first, window) + position - ops.reshape(context_begin, (-1,))
    found = context_lengths > 0
    if task.unanswerable:
        start, end = (ops.where(is_context | (positions == 0), side, _NEVER) for side in sides)
        empty, empty_window = _lowest_empty_score(sides[0], sides[1], taken)
        is_empty = found & (empty >= ops.max(score, axis=1))
        window = ops.where(is_empty, empty_window, window)
        position, length = (ops.where(is_empty, 0, x) for x in (position, length))
        found = found & ~is_empty
    log_probability = _log_softmax_at(start, window, position) + _log_softmax_at(
        end, window, position + length
    )
    return {
        "start": ops.where(found, begin, 0),
        "end": ops.where(found, begin + length, 0),
        "probability": ops.where(context_lengths > 0, ops.exp(log_probability), 0.0),
        "found": found,
    }


def column(x: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1)."""
    return ops.expand_dims(x, 1)


def _windows(task, question_ids, question_lengths, context_ids, first, taken):
    """Build all windows.

    Returns:
        Token ids, int32 (B, W, T); lengths (B, W); and the position where the context begins,
        (B, 1, 1).
    """
    begin, middle, end = len(task.begin), len(task.separators), len(task.end)
    question_end = begin + ops.reshape(question_lengths, (-1, 1, 1))
    context_begin = question_end + middle
    lengths = ops.squeeze(context_begin, -1) + taken + end
    positions = ops.reshape(ops.arange(ops.max(lengths), dtype="int32"), (1, 1, -1))
    zeros = ops.zeros_like(ops.expand_dims(first, -1)) + positions * 0
    question = _rows_at(question_ids, positions - begin + zeros)
    context = _rows_at(context_ids, ops.expand_dims(first, -1) + positions - context_begin)
    context_end = context_begin + ops.expand_dims(taken, -1)
    token_ids = ops.where(positions < context_end, context, task.tokenizer.pad_id)
    if end:
        token_ids = ops.where(positions == context_end, task.end[0], token_ids)
    if middle:
        token_ids = ops.where(positions < context_begin, task.separators[0], token_ids)
    token_ids = ops.where(positions < question_end, question, token_ids)
    if begin:
        token_ids = ops.where(positions < begin, task.begin[0], token_ids)
    return token_ids, lengths, context_begin


def _rows_at(ids, index):
    """Gather ids (B, N) at clipped indices (B, W, T): (B, W, T)."""
    shape = ops.shape(index)
    index = ops.clip(index, 0, ops.shape(ids)[1] - 1)
    return ops.reshape(ops.take_along_axis(ids, ops.reshape(index, (shape[0], -1)), axis=1), shape)


def _best_ends(start, end, longest):
    """Find the best span of at most `longest` tokens from each start.

    Returns:
        Its score and its length minus 1, both (B, W, T).
    """
    best, length = start + end, ops.zeros_like(start, dtype="int32")
    for more in range(1, longest):
        padding = ops.full_like(end[:, :, :more], _NEVER)
        shifted = ops.concatenate([end[:, :, more:], padding], axis=-1)
        score = start + shifted
        length = ops.where(score > best, more, length)
        best = ops.maximum(score, best)
    return best, length


def _lowest_empty_score(start, end, taken):
    """Return the lowest score of the empty span over windows and the index of the window, (B,).

    Args:
        start, end: logits (B, W, T).
        taken: number of context tokens in each window, (B, W).
    """
    scores = ops.where(taken > 0, start[:, :, 0] + end[:, :, 0], -_NEVER)
    return ops.min(scores, axis=1), ops.cast(ops.argmin(scores, axis=1), "int32")


def _log_softmax_at(logits, window, position):
    """Return the log-probability (B,) of a position under the softmax over its window.

    Args:
        logits: (B, W, T).
        window, position: (B,).
    """
    index = ops.reshape(window, (-1, 1, 1))
    chosen = ops.squeeze(ops.take_along_axis(logits, index, axis=1), 1)
    return _pick(chosen, position) - ops.logsumexp(chosen, axis=-1)


def _pick(x, index):
    """Gather x (B, N) at index (B,): (B,)."""
    return ops.squeeze(ops.take_along_axis(x, column(index), axis=1), 1)
