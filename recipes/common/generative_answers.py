"""Train and evaluate an encoder-decoder that answers questions from memory."""

import collections

from keras_llm.recipes.common import tables, translations
from keras_llm.recipes.corpora import readers

DEFAULTS = {
    "corpus": "trivia",
    "start": "scratch",
    "preset": "seq2seq-2m",
    "epochs": 10,
    "learning_rate": 2e-3,
}
BASELINES = {"baseline": "answer of the nearest question", "frequent": "most frequent answer"}
ABOUT = "An encoder-decoder that answers questions from memory."
HELD_OUT, UNIT = "questions", "pairs"
NEXT = 'generate {out} "What is the capital of France?" --temperature 0'
_LONGEST = 32  # maximum tokens of an answer
untrained = translations.untrained  # one vocabulary for questions and answers


def rows(options):
    """Return training rows, held-out rows, and a dict of dropped rows by reason.

    Raises:
        InputError: if the data cannot be read.
    """
    columns = [options.question_column, options.answer_column]
    train, held_out, dropped = tables.rows(options, columns, "generative")
    return train[: options.max_rows or None], held_out, dropped


def read(options, path):
    """Read the rows of another file."""
    from keras_llm.data import read_records

    return read_records(path, [options.question_column, options.answer_column])


def batches(task, rows, options, seed=None):
    """Return a `tf.data.Dataset` of inputs and targets, and a dict of dropped rows by reason.

    The target is the first of the correct answers.
    """
    first = [(question, right(answers)[0]) for question, answers in rows]
    short, dropped = translations.short_pairs(task, first, options, warn=seed is not None)
    return task.dataset(short, options.batch_size, options.epochs, seed), dropped


def measured(task, rows, options):
    """Compute exact match and F1 of greedy answers; see `training.evaluate_answers`.

    Questions that do not fit the model are cut; `cut_questions` is their number, if there are any.
    """
    questions, cut = translations.shortened(task, [row[0] for row in rows[: options.test_rows]])
    metrics = _measured(translations.translated(task, questions, _LONGEST), rows)
    return metrics | ({"cut_questions": cut} if cut else {})


def answered(task, rows):
    """Answer the question of each row, cut to fit the model; returns a list of str."""
    questions, _ = translations.shortened(task, [question for question, _ in rows])
    return translations.translated(task, questions, _LONGEST)


def baselines(task, train, held_out, options):
    """Compute the metrics of the baselines.

    They are the answer of the nearest training question by TF-IDF, and the most frequent answer.
    """
    first = [(question, right(answers)[0]) for question, answers in train]
    ((frequent, _),) = collections.Counter(answer for _, answer in first).most_common(1)
    test = held_out[: options.test_rows]
    return {
        "baseline": _measured(translations.nearest(first, test), test),
        "frequent": _measured([frequent] * len(test), test),
    }


def notes(task, options, held_out):
    """Return lines for the model card."""
    test = held_out[:3]
    examples = zip(test, answered(task, test), strict=True)
    lines = "; ".join(f"{q!r} gets {answer!r}, expected {a!r}" for (q, a), answer in examples)
    return [
        f"Exact match and F1 by SQuAD's rules, with the nearest correct answer counting, on at "
        f"most {options.test_rows:,} held-out questions. Training uses the first correct answer.",
        f"Examples: {lines}.",
        "A model of this size can answer questions that it was trained on; its answers to other "
        "questions are plausible guesses and seldom correct.",
    ]


def right(answers):
    """Split the correct answers; returns a list of str."""
    return answers.split(readers.ALTERNATIVE)


def _measured(predictions, rows):
    from keras_llm import training

    references = [right(answers) for _, answers in rows[: len(predictions)]]
    return training.evaluate_answers(predictions, references)
