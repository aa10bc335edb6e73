"""Where in a context the answer to a question is: windows over long contexts, and the best span.

Written on dense tensors, so that a task in Python and an exported graph run the same lines.
"""

from keras import ops

_NEVER = -1e9


def best_spans(task, question_ids, question_lengths, context_ids, context_lengths):
    """The most likely span of each context.

    A window is `begin question separators context-part end`. A context that does not fit into one
    is read in windows each of which begins half a window's context after the one before.

    Args:
        task: a `QuestionAnswering`.
        question_ids: int32 (B, Q), padded on the right.
        question_lengths: int32 (B,), in `0 .. task.question_room`.
        context_ids: int32 (B, C), padded on the right; C > 0.
        context_lengths: int32 (B,).

    The empty span is the begin token of a window. With `task.unanswerable` it is the answer where
    no span of the context has a higher score than it has in the window where it has the lowest.

    Returns:
        A dict of `start` and `end`, int32 (B,), the first and the last token of the span, as
        indices into the context; `probability`, float32 (B,), the product of both under the
        softmax over the context of their window, and its begin token if that may be the answer;
        and `found`, bool (B,), False where the context or the span is empty.
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
    places = ops.arange(width, dtype="int32")
    is_context = (places >= context_begin) & (
        places < context_begin + ops.expand_dims(taken, -1)
    )  # (B, W, T)
    flat = (-1, width)
    is_second = ops.cast(places >= context_begin, "int32") + ops.zeros_like(token_ids)
    logits = task.outputs(
        ops.reshape(token_ids, flat),
        ops.reshape(lengths, (-1,)),
        segment_ids=ops.reshape(is_second, flat),
    )
    sides = [ops.reshape(logits[name], ops.shape(token_ids)) for name in ("start", "end")]
    start, end = (ops.where(is_context, side, _NEVER) for side in sides)
    score, length = _best_ends(start, end, task.longest_answer)
    score = ops.reshape(score, (rows, -1))
    best = ops.cast(ops.argmax(score, axis=1), "int32")  # window and place in one
    window, place = best // width, best % width
    length = _pick(ops.reshape(length, (rows, -1)), best)
    begin = _pick(first, window) + place - ops.reshape(context_begin, (-1,))
    found = context_lengths > 0
    if task.unanswerable:
        start, end = (ops.where(is_context | (places == 0), side, _NEVER) for side in sides)
        empty, empty_window = _least_empty(*sides, taken)
        is_empty = found & (empty >= ops.max(score, axis=1))
        window = ops.where(is_empty, empty_window, window)
        place, length = (ops.where(is_empty, 0, x) for x in (place, length))
        found = found & ~is_empty
    log_probability = _log_softmax_at(start, window, place) + _log_softmax_at(
        end, window, place + length
    )
    return {
        "start": ops.where(found, begin, 0),
        "end": ops.where(found, begin + length, 0),
        "probability": ops.where(context_lengths > 0, ops.exp(log_probability), 0.0),
        "found": found,
    }


def column(x):
    """(B,) -> (B, 1)."""
    return ops.expand_dims(x, 1)


def _windows(task, question_ids, question_lengths, context_ids, first, taken):
    """Token ids int32 (B, W, T) of all windows, their lengths (B, W), and where in them the
    context begins, (B, 1, 1)."""
    begin, middle, end = len(task.begin), len(task.separators), len(task.end)
    question_end = begin + ops.reshape(question_lengths, (-1, 1, 1))
    context_begin = question_end + middle
    lengths = ops.squeeze(context_begin, -1) + taken + end
    places = ops.reshape(ops.arange(ops.max(lengths), dtype="int32"), (1, 1, -1))
    zeros = ops.zeros_like(ops.expand_dims(first, -1)) + places * 0
    question = _rows_at(question_ids, places - begin + zeros)
    context = _rows_at(context_ids, ops.expand_dims(first, -1) + places - context_begin)
    context_end = context_begin + ops.expand_dims(taken, -1)
    token_ids = ops.where(places < context_end, context, task.tokenizer.pad_id)
    if end:
        token_ids = ops.where(places == context_end, task.end[0], token_ids)
    if middle:
        token_ids = ops.where(places < context_begin, task.separators[0], token_ids)
    token_ids = ops.where(places < question_end, question, token_ids)
    if begin:
        token_ids = ops.where(places < begin, task.begin[0], token_ids)
    return token_ids, lengths, context_begin


def _rows_at(ids, index):
    """ids (B, N), index (B, W, T), clipped -> (B, W, T)."""
    shape = ops.shape(index)
    index = ops.clip(index, 0, ops.shape(ids)[1] - 1)
    return ops.reshape(ops.take_along_axis(ids, ops.reshape(index, (shape[0], -1)), axis=1), shape)


def _best_ends(start, end, longest):
    """For each start (B, W, T) the score of the best span of at most `longest` tokens that begins
    there, and its length less one."""
    best, length = start + end, ops.zeros_like(start, dtype="int32")
    for more in range(1, longest):
        padding = ops.full_like(end[:, :, :more], _NEVER)
        shifted = ops.concatenate([end[:, :, more:], padding], axis=-1)
        score = start + shifted
        length = ops.where(score > best, more, length)
        best = ops.maximum(score, best)
    return best, length


def _least_empty(start, end, taken):
    """Logits (B, W, T), tokens of each window's context (B, W) -> the lowest score (B,) that the
    empty span has in a window, and which."""
    scores = ops.where(taken > 0, start[:, :, 0] + end[:, :, 0], -_NEVER)
    return ops.min(scores, axis=1), ops.cast(ops.argmin(scores, axis=1), "int32")


def _log_softmax_at(logits, window, place):
    """logits (B, W, T), window and place (B,) -> (B,): the log-probability of a place among
    those of its window."""
    index = ops.reshape(window, (-1, 1, 1))
    chosen = ops.squeeze(ops.take_along_axis(logits, index, axis=1), 1)
    return _pick(chosen, place) - ops.logsumexp(chosen, axis=-1)


def _pick(x, index):
    """x (B, N), index (B,) -> (B,)."""
    return ops.squeeze(ops.take_along_axis(x, column(index), axis=1), 1)
