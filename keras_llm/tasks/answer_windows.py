"""Cut contexts into the windows that a question answering model is trained on."""

import random

import numpy as np

from keras_llm import data
from keras_llm.data.answer_spans import find_answer

_WITHOUT = 0.25  # share of the rows with an answer that also show a window without it


def answer_windows(task, rows, seed):
    """The windows of some rows.

    Contexts are cut into the windows that the task reads. All windows that contain the whole answer
    are taken, and for every fourth row, drawn by the seed, one of the others, whose answer is the
    empty span: with more of them a short training learns to answer nothing. All windows of a row
    without an answer are taken.

    Args:
        task: a `QuestionAnswering`.
        rows: list of (question, context, answer) from `data.locate_answers`.
        seed: int.

    Returns:
        A dict of `ids`, lists of ints, and lists of ints `begin` (where the context begins),
        `start` and `end` (the first and the last token of the answer); and a dict from the reason
        to the number of rows that were dropped.
    """
    draw, tokenizer = random.Random(seed), task.tokenizer
    columns = {"ids": [], "begin": [], "start": [], "end": []}
    questions, without = tokenizer.encode_batch([row[0] for row in rows]), 0
    for question, (_, context, answer) in zip(questions, rows, strict=True):
        head = [*task.begin, *question[: task.question_room], *task.separators]
        ids, offsets = tokenizer.encode_with_offsets(context)
        span = _tokens(offsets, *find_answer(context, answer)) if answer else None
        room = task.room - len(head) + len(task.begin)
        holding, others = [], []
        for first in range(0, max(1, len(ids) - room // 2), room - room // 2):
            row = [*head, *ids[first : first + room], *task.end]
            if span and first <= span[0] and span[1] < first + room:
                holding.append((row, *(len(head) + token - first for token in span)))
            else:
                others.append((row, 0, 0))
        without += bool(answer) and not holding
        if answer:
            is_drawn = holding and others and draw.random() < _WITHOUT
            others = [draw.choice(others)] if is_drawn else []
        for row, start, end in holding + others:
            for name, value in zip(columns, (row, len(head), start, end), strict=True):
                columns[name].append(value)
    return columns, {"answer longer than a window": without} if without else {}


def window_dataset(task, columns, batch_size, epochs=1, seed=None):
    """Batches of `answer_windows`: a `tf.data.Dataset` of the model's inputs and targets."""
    import tensorflow as tf

    plan = data.batch_plan([len(row) for row in columns["ids"]], batch_size, epochs, seed)
    columns = {k: v if k == "ids" else np.array(v, "int32") for k, v in columns.items()}

    def batch(b):
        places = tf.range(tf.shape(b["ids"])[1])[None]
        segment_ids = tf.cast(places >= b["begin"][:, None], tf.int32)
        inputs = task.inputs(b["ids"], b["ids_length"], segment_ids)
        return inputs, {"start": b["start"], "end": b["end"]}

    return data.padded_dataset(columns, plan, task.tokenizer.pad_id).map(batch)


def _tokens(offsets, start, end):
    """The first and the last token of the characters `start .. end - 1`, or None."""
    inside = [i for i, (begin, stop) in enumerate(offsets) if stop > start and begin < end]
    return (inside[0], inside[-1]) if inside else None
