"""Train and evaluate an encoder that answers questions with a span of the context."""

import re

from keras_llm.errors import InputError
from keras_llm.recipes.common import pretrained, runs, tables, vocabularies

DEFAULTS = {"corpus": "reading", **pretrained.DEFAULTS}
BASELINES = {"baseline": "nearest sentence", "no_answer": "never answering"}
ABOUT = "An encoder that answers questions with a span of a text."
HELD_OUT, UNIT = "questions on other texts", "windows"
NEXT = 'predict {out} "Who wrote it?" --context "It was written by Ada."'
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def rows(options):
    """Return training rows, held-out rows, and a dict of dropped rows by reason.

    Raises:
        InputError: if the data cannot be read, or no answer occurs in its context.
    """
    from keras_llm import data

    columns = [options.question_column, options.context_column, options.answer_column]
    train, held_out, dropped = tables.rows(
        options, columns, "span", by=1, unique=(0, 1), may_be_empty=[2]
    )
    train = train[: options.max_rows or None]
    (train, missing), (held_out, others) = map(data.locate_answers, (train, held_out))
    if not train or not held_out:
        raise InputError(f"{options.source}: no answer occurs in its context.")
    missing = {name: missing.get(name, 0) + others.get(name, 0) for name in missing | others}
    for reason, count in missing.items():
        runs.say(f"{count} rows dropped: {reason}")
    return train, held_out, dropped | missing


def read(options, path):
    """Read the rows of another file."""
    from keras_llm.data import read_records

    return read_records(
        path, [options.question_column, options.context_column, options.answer_column]
    )


def untrained(options, train, metadata):
    """Return the untrained task."""
    from keras_llm import models, tasks

    texts = [text for row in train for text in row[:2]]
    encoder, tokenizer = pretrained.new_or_pretrained(options, texts)
    metadata = {**metadata, "unanswerable": any(not answer for _, _, answer in train)}
    return tasks.QuestionAnswering(models.span_qa(encoder), tokenizer, metadata)


def measured(task, rows, options):
    """Evaluate a task on rows; see `training.evaluate_answers`."""
    return task.evaluate(rows)


def baselines(task, train, held_out, options):
    """Compute the metrics of the baselines.

    They are the sentence nearest to the question and, if some questions have no answer, never
    answering.
    """
    from keras_llm import training

    answers = [answer for _, _, answer in held_out]
    metrics = {"baseline": training.evaluate_answers(nearest_sentences(train, held_out), answers)}
    if task.unanswerable:
        metrics["no_answer"] = training.evaluate_answers([""] * len(answers), answers)
    return metrics


def notes(task, options, held_out):
    """Return lines for the model card."""
    question, context, answer = held_out[0]
    prediction = task(question, context, truncate=True)
    return [
        "Exact match and F1 by SQuAD's rules, with one reference per question. Training uses the "
        "first occurrence of the answer in the context.",
        "It returns an empty answer if the text has none."
        if task.unanswerable
        else "It always answers: every training question had an answer.",
        f"Example: {question!r} gets {prediction!r}, expected {answer!r}.",
    ]


def batches(task, rows, options, seed=None):
    """Return a `tf.data.Dataset` of inputs and targets, and a dict of dropped rows by reason."""
    from keras_llm.tasks.answer_windows import answer_windows, window_dataset

    columns, dropped = answer_windows(task, rows, options.seed)
    return window_dataset(task, columns, options.batch_size, options.epochs, seed), dropped


def nearest_sentences(train, rows):
    """Return for each row the sentence of its context that is nearest to the question by TF-IDF."""
    contexts = [context for _, context, _ in train]
    words = vocabularies.tfidf(contexts).fit(contexts)
    nearest = []
    for question, context, _ in rows:
        sentences = _SENTENCES.split(context.strip())
        similarity = (words.transform(sentences) @ words.transform([question]).T).toarray()
        nearest.append(sentences[int(similarity.argmax())])
    return nearest
