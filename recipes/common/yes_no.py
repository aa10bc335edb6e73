"""Train and evaluate a classifier that answers questions about a context with yes or no."""

from keras_llm.errors import InputError
from keras_llm.recipes.common import pretrained, tables

DEFAULTS = {"corpus": "boolq", **pretrained.DEFAULTS}
BASELINES = {"baseline": "shares of yes and no"}
ABOUT = "An encoder that answers questions about a text with yes or no."
HELD_OUT, UNIT = "questions on other texts", "windows"
NEXT = 'predict {out} "is it red" --context "The rose is red."'
_LABELS = ["no", "yes"]
_SPELLINGS = {"no": "no", "false": "no", "yes": "yes", "true": "yes"}
_SEPARATOR = "?\n"  # between question and context, which form one input text


def rows(options):
    """Return training rows, held-out rows, and a dict of dropped rows by reason.

    Raises:
        InputError: if the data cannot be read, an answer is not yes or no, or all training answers
            are the same.
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
    """Read the rows of another file."""
    from keras_llm.data import read_records

    columns = [options.question_column, options.context_column, options.answer_column]
    return _spelled(options.reading(path), read_records(path, columns))


def untrained(options, train, metadata):
    """Return the untrained task."""
    from keras_llm import models, tasks

    encoder, tokenizer = pretrained.new_or_pretrained(
        options, [text for row in train for text in row[:2]]
    )
    model = models.text_classifier(encoder, len(_LABELS), "mean", options.dropout)
    metadata = {**metadata, "context_separator": _SEPARATOR}
    return tasks.TextClassification(model, tokenizer, _LABELS, metadata)


def batches(task, rows, options, seed=None):
    """Return a `tf.data.Dataset` of inputs and targets, and a dict of dropped rows by reason."""
    return task.dataset(_joined(task, rows), options.batch_size, options.epochs, seed), {}


def measured(task, rows, options):
    """Evaluate a task on rows; see `training.evaluate_classifier`."""
    return task.evaluate(_joined(task, rows))


def baselines(task, train, held_out, options):
    """Compute the metrics of a baseline: the shares of yes and no in the training rows."""
    import numpy as np

    from keras_llm import training

    share = np.mean([answer == "yes" for _, _, answer in train])
    shares = np.tile([1 - share, share], (len(held_out), 1))
    labels = [_LABELS.index(answer) for _, _, answer in held_out]
    return {"baseline": training.evaluate_classifier(labels, shares)}


def notes(task, options, held_out):
    """Return lines for the model card."""
    question, context, answer = held_out[0]
    prediction = task(question, context, truncate=True)
    return [
        "The input is the question, `?`, a line break and the text.",
        f"Example: {question!r} gets {prediction!r}, expected {answer!r}.",
    ]


def texts(task, rows):
    """Return the model's input texts, each a question with its context."""
    return task.with_contexts([question for question, *_ in rows], [row[1] for row in rows])


def _joined(task, rows):
    return list(zip(texts(task, rows), [answer for *_, answer in rows], strict=True))


def _spelled(options, rows):
    """Return the rows with answers normalized to "yes" and "no"; also accepts true and false."""
    for question, _, answer in rows:
        if answer.lower() not in _SPELLINGS:
            raise InputError(
                f"{options.source}: the answer to {question!r} must be yes or no, got {answer!r}."
            )
    return [(question, context, _SPELLINGS[answer.lower()]) for question, context, answer in rows]
