"""Read contexts in overlapping windows and find the best answer span (see `span_search`).

Uses dense tensors only, so that tasks in Python and exported graphs run the same code.
"""

from typing import TYPE_CHECKING

from keras import ops

from keras_llm.span_search import best_span, window_step
from keras_llm.types import Tensor

if TYPE_CHECKING:
    from keras_llm.tasks.question_answering import QuestionAnswering


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
    step = window_step(room)
    counts = 1 + ops.maximum(context_lengths - room + step - 1, 0) // step
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
    start, end = (ops.reshape(logits[name], ops.shape(token_ids)) for name in ("start", "end"))
    span = best_span(ops, start, end, is_context, task.longest_answer, task.unanswerable)
    begin = ops.squeeze(ops.take_along_axis(first, column(span.window), axis=1), 1)
    begin = begin + span.start - ops.reshape(context_begin, (-1,))
    has_context = context_lengths > 0
    has_answer = has_context & ~span.is_empty
    return {
        "start": ops.where(has_answer, begin, 0),
        "end": ops.where(has_answer, begin + span.length, 0),
        "probability": ops.where(has_context, ops.exp(span.log_probability), 0.0),
        "found": has_answer,
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
