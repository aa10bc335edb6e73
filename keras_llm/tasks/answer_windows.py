"""Split contexts into windows to train question answering models."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm import data
from keras_llm.data.answer_spans import find_answer
from keras_llm.span_search import window_starts
from keras_llm.types import Dataset

if TYPE_CHECKING:
    from keras_llm.tasks.question_answering import QuestionAnswering

_WITHOUT = 0.25  # share of answerable rows that also get a window without the answer


def answer_windows(
    task: "QuestionAnswering", rows: Sequence[tuple[str, str, str]], seed: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Split rows into training windows.

    Contexts are split into the windows that the task reads. All windows with the complete answer
    are used. A random quarter of the answerable rows also gets one window without the answer, whose
    target is the empty span; with more of them, a short training learns to predict no answer. For
    unanswerable rows all windows are used.

    Args:
        task: a `QuestionAnswering`.
        rows: list of (question, context, answer) from `data.locate_answers`.
        seed: int.

    Returns:
        A dict of `ids`, lists of ints, and lists of ints `begin` (the position of the context),
        `start` and `end` (the first and last token of the answer); and a dict from reason to number
        of dropped rows.
    """
    rng, tokenizer = random.Random(seed), task.tokenizer
    columns: dict[str, list[Any]] = {"ids": [], "begin": [], "start": [], "end": []}
    questions, without = tokenizer.encode_batch([row[0] for row in rows]), 0
    for question, (_, context, answer) in zip(questions, rows, strict=True):
        head = [*task.begin, *question[: task.question_room], *task.separators]
        ids, offsets = tokenizer.encode_with_offsets(context)
        span = None
        if answer:
            place = find_answer(context, answer)
            assert place is not None  # `locate_answers` keeps no other rows
            span = _tokens(offsets, *place)
        room = task.room - len(head) + len(task.begin)
        with_answer, others = [], []
        for first in window_starts(len(ids), room):
            row = [*head, *ids[first : first + room], *task.end]
            if span and first <= span[0] and span[1] < first + room:
                with_answer.append((row, *(len(head) + token - first for token in span)))
            else:
                others.append((row, 0, 0))
        without += bool(answer) and not with_answer
        if answer:
            is_drawn = with_answer and others and rng.random() < _WITHOUT
            others = [rng.choice(others)] if is_drawn else []
        for row, start, end in with_answer + others:
            for name, value in zip(columns, (row, len(head), start, end), strict=True):
                columns[name].append(value)
    return columns, {"answer longer than a window": without} if without else {}


def window_dataset(
    task: "QuestionAnswering",
    columns: dict[str, list[Any]],
    batch_size: int,
    epochs: int = 1,
    seed: int | None = None,
) -> Dataset:
    """Return batches of `answer_windows`, a `tf.data.Dataset` of the model's inputs and targets."""
    import tensorflow as tf

    plan = data.batch_plan([len(row) for row in columns["ids"]], batch_size, epochs, seed)
    arrays = {k: v if k == "ids" else np.array(v, "int32") for k, v in columns.items()}

    def batch(b):
        positions = tf.range(tf.shape(b["ids"])[1])[None]
        segment_ids = tf.cast(positions >= b["begin"][:, None], tf.int32)
        inputs = task.inputs(b["ids"], b["ids_length"], segment_ids)
        return inputs, {"start": b["start"], "end": b["end"]}

    return data.padded_dataset(arrays, plan, task.tokenizer.pad_id).map(batch)


def _tokens(offsets, start, end):
    """Return the first and last token of the characters `start .. end - 1`, or None."""
    inside = [i for i, (begin, stop) in enumerate(offsets) if stop > start and begin < end]
    return (inside[0], inside[-1]) if inside else None
