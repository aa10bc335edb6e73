"""Rows (question, context, answer) as a model with a span head learns them."""

import random
import re

from keras_llm.errors import InputError
from keras_llm.recipes.common import pretrained, runs, tables

DEFAULTS = {
    "corpus": "reading",
    "start": pretrained.MINILM,
    "preset": "encoder-2m",
    "epochs": 2,
    "learning_rate": 2e-4,
}
BASELINES = {"baseline": "nearest sentence", "no_answer": "never an answer"}
ABOUT = "Answers questions with a part of a text."
HELD_OUT, UNIT = "questions, on other texts than those of the training", "windows"
NEXT = 'predict {out} "Who wrote it?" --context "It was written by Ada."'
_WITHOUT = 0.25  # of the rows with an answer, how many show a window without it
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def rows(options):
    """Training rows, held-out rows, and what was dropped.

    Raises:
        InputError: if the data cannot be read, or no answer stands in its context.
    """
    columns = [options.question_column, options.context_column, options.answer_column]
    train, held_out, dropped = tables.rows(
        options, columns, "span", by=1, unique=(0, 1), may_be_empty=[2]
    )
    train = train[: options.max_rows or None]
    (train, missing), (held_out, others) = located(train), located(held_out)
    if not train or not held_out:
        raise InputError(f"{options.source}: no answer stands in its context.")
    missing = {name: missing.get(name, 0) + others.get(name, 0) for name in missing | others}
    for reason, count in missing.items():
        runs.say(f"{count} rows dropped: {reason}")
    return train, held_out, dropped | missing


def read(options, path):
    """The rows of another file."""
    from keras_llm.data import read_records

    return read_records(
        path, [options.question_column, options.context_column, options.answer_column]
    )


def untrained(options, train, metadata):
    """The task before the training."""
    from keras_llm import models, tasks

    texts = [text for row in train for text in row[:2]]
    encoder, tokenizer = pretrained.fresh_or_started(options, texts)
    metadata = {**metadata, "unanswerable": any(not answer for _, _, answer in train)}
    return tasks.QuestionAnswering(models.span_qa(encoder), tokenizer, metadata)


def trainer(task, options, steps):
    """The compiled model that is fitted."""
    import keras

    from keras_llm import training

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    measures = ["sparse_categorical_accuracy"]
    trainer = training.Trainer(task.model)
    runs.compile_trainer(
        *(options, trainer, steps, {"start": loss, "end": loss}),
        metrics={"start": measures, "end": measures},
    )
    return trainer


def measured(task, rows, options):
    """How well a task answers rows, see `training.evaluate_answers`."""
    from keras_llm import training

    questions, contexts, answers = map(list, zip(*rows, strict=True))
    return training.evaluate_answers(task(questions, contexts, truncate=True), answers)


def baselines(task, train, held_out, options):
    """What answers without learning give: the sentence nearest to the question, and if some
    questions have no answer, never one."""
    from keras_llm import training

    answers = [answer for _, _, answer in held_out]
    found = {"baseline": training.evaluate_answers(nearest_sentences(train, held_out), answers)}
    if task.unanswerable:
        found["no_answer"] = training.evaluate_answers([""] * len(answers), answers)
    return found


def notes(task, options, held_out):
    """Lines for the model card."""
    question, context, answer = held_out[0]
    found = task(question, context, truncate=True)
    return [
        "Exact match and F1 by SQuAD's rules, each question with one reference. In training "
        "the first place counts where the context has the answer's words.",
        "It says so where a text has no answer."
        if task.unanswerable
        else "It always answers: no training question was without an answer.",
        f"Example: {question!r} is answered {found!r}, expected {answer!r}.",
    ]


def located(rows):
    """The rows whose answer stands in their context, or that have none, and what was dropped.

    An answer is looked for as whole words, letter case and white space aside.

    Args:
        rows: list of (question, context, answer), "" for no answer.

    Returns:
        A list of the same with the answer as the context spells it, and a dict from the reason to
        how many were left out.
    """
    found = [(question, context, place(context, answer)) for question, context, answer in rows]
    kept = [
        (question, context, context[slice(*span)])
        for question, context, span in found
        if span is not None
    ]
    count = len(rows) - len(kept)
    return kept, {"answer not in the context": count} if count else {}


def place(context, answer):
    """Where an answer first stands in a context: a pair of ints, (0, 0) for no answer; or None."""
    letters = "".join(answer.split())
    if not letters:
        return 0, 0
    pattern = r"\s*".join(map(re.escape, letters))
    if letters[0].isalnum():
        pattern = r"(?<!\w)" + pattern
    if letters[-1].isalnum():
        pattern += r"(?!\w)"
    match = re.search(pattern, context, re.IGNORECASE)
    return match.span() if match else None


def examples(task, rows, seed):
    """The windows that a model is trained and measured on.

    Contexts are cut into the windows that the task reads. Of a row, those are taken in which the
    whole answer stands, and of every fourth row, drawn by the seed, one of the others, whose answer
    is the empty span: with more of them a short training learns to answer nothing. Of a row without
    an answer all are taken.

    Args:
        task: a `QuestionAnswering`.
        rows: from `located`.
        seed: int.

    Returns:
        A dict of `ids`, lists of ints, and lists of ints `begin` (where the context begins),
        `start` and `end` (the first and the last token of the answer); and a dict of what was
        dropped.
    """
    draw, tokenizer = random.Random(seed), task.tokenizer
    columns = {"ids": [], "begin": [], "start": [], "end": []}
    questions, without = tokenizer.encode_batch([row[0] for row in rows]), 0
    for question, (_, context, answer) in zip(questions, rows, strict=True):
        head = [*task.begin, *question[: task.question_room], *task.separators]
        ids, offsets = tokenizer.encode_with_offsets(context)
        span = _tokens(offsets, *place(context, answer)) if answer else None
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


def batches(task, rows, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and targets, and what was dropped."""
    import numpy as np
    import tensorflow as tf

    from keras_llm import data

    columns, dropped = examples(task, rows, options.seed)
    lengths = [len(row) for row in columns["ids"]]
    plan = data.batch_plan(lengths, options.batch_size, options.epochs, seed)
    columns = {k: v if k == "ids" else np.array(v, "int32") for k, v in columns.items()}

    def batch(b):
        places = tf.range(tf.shape(b["ids"])[1])[None]
        segment_ids = tf.cast(places >= b["begin"][:, None], tf.int32)
        inputs = task.inputs(b["ids"], b["ids_length"], segment_ids)
        return inputs, {"start": b["start"], "end": b["end"]}

    return data.padded_dataset(columns, plan, task.tokenizer.pad_id).map(batch), dropped


def nearest_sentences(train, rows):
    """For each row the sentence of its context that is most like the question in the TF-IDF of
    words, a list of str."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer().fit([context for _, context, _ in train])
    found = []
    for question, context, _ in rows:
        sentences = _SENTENCES.split(context.strip())
        alike = (words.transform(sentences) @ words.transform([question]).T).toarray()
        found.append(sentences[int(alike.argmax())])
    return found


def _tokens(offsets, start, end):
    """The first and the last token of the characters `start .. end - 1`, or None."""
    inside = [i for i, (begin, stop) in enumerate(offsets) if stop > start and begin < end]
    return (inside[0], inside[-1]) if inside else None
