"""Rows (question, answers) as an encoder-decoder learns them that answers from memory."""

import collections

from keras_llm.recipes.common import runs, tables, translations
from keras_llm.recipes.corpora import quiz_readers

DEFAULTS = {
    "corpus": "trivia",
    "start": "scratch",
    "preset": "seq2seq-2m",
    "epochs": 10,
    "learning_rate": 2e-3,
}
BASELINES = {"baseline": "answer of the nearest question", "frequent": "most frequent answer"}
ABOUT = "Answers questions from memory, in words of its own."
HELD_OUT, UNIT = "questions of which none was trained on", "pairs"
NEXT = 'generate {out} "What is the capital of France?" --temperature 0'
_LONGEST = 32  # tokens of an answer


def rows(options):
    """Training rows, held-out rows, and what was dropped.

    Raises:
        InputError: if the data cannot be read.
    """
    columns = [options.question_column, options.answer_column]
    train, held_out, dropped = tables.rows(options, columns, "generative")
    return train[: options.max_rows or None], held_out, dropped


def read(options, path):
    """The rows of another file."""
    from keras_llm.data import read_records

    return read_records(path, [options.question_column, options.answer_column])


def untrained(options, train, metadata):
    """The task before the training: one vocabulary for questions and answers."""
    from keras_llm import models, tasks, tokenizers

    texts = [text for row in train for text in row]
    tokenizer = tokenizers.SentencePiece.train(texts, options.vocabulary_size, model_type="bpe")
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=options.dropout,
        pad_id=tokenizer.pad_id,
        start_id=tokenizer.bos_id,
    )
    return tasks.Translation(models.seq2seq(config), tokenizer, metadata)


def batches(task, rows, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and targets, and what was dropped; the first
    of the right answers is learned."""
    first = [(question, right(answers)[0]) for question, answers in rows]
    dataset, too_long = translations.batches(task, first, options, seed)
    return dataset, {f"longer than {options.max_length} tokens": too_long} if too_long else {}


def trainer(task, options, steps):
    """The compiled model that is fitted."""
    return runs.token_trainer(options, task.model, steps, task.tokenizer.pad_id)


def measured(task, rows, options):
    """Exact match and F1 of the likeliest answers, see `training.evaluate_answers`."""
    return _measured(answered(task, rows[: options.test_rows], options), rows)


def answered(task, rows, options):
    """The likeliest answer to the question of each row, a list of str."""
    room = task.model.config.max_length - 1
    questions = [task.tokenizer.encode(question)[:room] for question, _ in rows]
    questions = [task.tokenizer.decode(ids) for ids in questions]  # longer ones are cut
    return translations.translated(task, questions, _LONGEST)


def baselines(task, train, held_out, options):
    """What the most frequent answer gives, and that of the training question which is most alike in
    the TF-IDF of words."""
    firsts = [(question, right(answers)[0]) for question, answers in train]
    ((frequent, _),) = collections.Counter(answer for _, answer in firsts).most_common(1)
    test = held_out[: options.test_rows]
    return {
        "baseline": _measured(translations.nearest(firsts, test), test),
        "frequent": _measured([frequent] * len(test), test),
    }


def notes(task, options, held_out):
    """Lines for the model card."""
    test = held_out[:3]
    examples = zip(test, answered(task, test, options), strict=True)
    told = "; ".join(f"{q!r} is answered {found!r}, expected {a!r}" for (q, a), found in examples)
    return [
        f"Exact match and F1 by SQuAD's rules, of several right answers the nearest, on at most "
        f"{options.test_rows:,} held-out questions. In training the first answer counts.",
        f"Examples: {told}.",
        "A model of this size answers what it has read, or nearly so; to what it has not read it "
        "says something of the right form, seldom the truth.",
    ]


def right(answers):
    """The right answers, a list of str."""
    return answers.split(quiz_readers.ALTERNATIVE)


def _measured(found, rows):
    from keras_llm import training

    references = [right(answers) for _, answers in rows[: len(found)]]
    return training.evaluate_answers(found, references)
