"""Rows (question, context, "yes" or "no") as a classifier learns them."""

import dataclasses

from keras_llm.errors import InputError
from keras_llm.recipes import text_classification
from keras_llm.recipes.common import pretrained, runs, tables, text_targets

DEFAULTS = {
    "corpus": "boolq",
    "start": pretrained.MINILM,
    "preset": "encoder-2m",
    "epochs": 2,
    "learning_rate": 2e-4,
}
BASELINES = {"baseline": "shares of yes and no"}
ABOUT = "Answers questions about a text with yes or no."
HELD_OUT, UNIT = "questions, on other texts than those of the training", "windows"
NEXT = 'predict {out} "is it red" --context "The rose is red."'
_LABELS = ["no", "yes"]
_KIND = text_targets.Classes(_LABELS)
_SPELLINGS = {"no": "no", "false": "no", "yes": "yes", "true": "yes"}
_SEPARATOR = "?\n"  # between question and context, which are read as one text


def rows(options):
    """Training rows, held-out rows, and what was dropped.

    Raises:
        InputError: if the data cannot be read, has other answers, or one alone in training.
    """
    columns = [options.question_column, options.context_column, options.answer_column]
    train, held_out, dropped = tables.rows(options, columns, "yes_no", by=1, unique=(0, 1))
    train = train[: options.max_rows or None]
    train, held_out = (_spelled(options, side) for side in (train, held_out))
    for label in _LABELS:
        if all(row[2] != label for row in train):
            raise InputError(f"{options.source}: no training row has the answer {label!r}.")
    return train, held_out, dropped


def read(options, path):
    """The rows of another file."""
    from keras_llm.data import read_records

    columns = [options.question_column, options.context_column, options.answer_column]
    return _spelled(dataclasses.replace(options, data=str(path)), read_records(path, columns))


def untrained(options, train, metadata):
    """The task before the training."""
    from keras_llm import models, tasks

    encoder, tokenizer = pretrained.fresh_or_started(
        options, [text for row in train for text in row[:2]]
    )
    model = models.text_classifier(encoder, len(_LABELS), "mean", options.dropout)
    metadata = {**metadata, "context_separator": _SEPARATOR}
    return tasks.TextClassification(model, tokenizer, _LABELS, metadata)


def batches(task, rows, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and targets, and what was dropped."""
    questions, contexts, answers = map(list, zip(*rows, strict=True))
    texts = task.with_contexts(questions, contexts)
    labelled = list(zip(texts, answers, strict=True))
    return text_classification.batches(task, labelled, _KIND, options, seed), {}


def trainer(task, options, steps):
    """The compiled model that is fitted."""
    import keras

    from keras_llm import training

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    trainer = training.Trainer(task.model)
    runs.compile_trainer(options, trainer, steps, loss, metrics=[accuracy])
    return trainer


def measured(task, rows, options):
    """How well a task answers rows, see `training.evaluate_classifier`."""
    import numpy as np

    from keras_llm import training

    questions, contexts, answers = map(list, zip(*rows, strict=True))
    found = task(questions, contexts, truncate=True, return_details=True)
    probabilities = np.array([list(row.probabilities.values()) for row in found])
    return training.evaluate_classifier([_LABELS.index(a) for a in answers], probabilities)


def baselines(task, train, held_out, options):
    """What the shares of yes and no in the training rows give."""
    import numpy as np

    from keras_llm import training

    share = np.mean([answer == "yes" for _, _, answer in train])
    shares = np.tile([1 - share, share], (len(held_out), 1))
    labels = [_LABELS.index(answer) for _, _, answer in held_out]
    return {"baseline": training.evaluate_classifier(labels, shares)}


def notes(task, options, held_out):
    """Lines for the model card."""
    question, context, answer = held_out[0]
    found = task(question, context, truncate=True)
    return [
        "The question and the text are read as one: question, `?`, a line break, text.",
        f"Example: {question!r} is answered {found!r}, expected {answer!r}.",
    ]


def _spelled(options, rows):
    """The rows with answers spelled "yes" and "no"; JSON's booleans and their words count too."""
    for question, _, answer in rows:
        if answer.lower() not in _SPELLINGS:
            raise InputError(
                f"{options.source}: the answer to {question!r} must be yes or no, got {answer!r}."
            )
    return [(question, context, _SPELLINGS[answer.lower()]) for question, context, answer in rows]
