"""Train an encoder to answer questions about a text: with a part of it, or with yes or no.

    keras-llm train question_answering --out runs/answers
    keras-llm train question_answering --out runs/yes_no --kind yes_no
    keras-llm train question_answering --out runs/mine --data rows.jsonl

Rows of question, context and answer are cleaned and split by context, and all-MiniLM-L6-v2, or
another encoder, is trained with `fit`. An empty answer says that the context has none, which the
model learns to say too. Held-out questions are answered by it and by a baseline of the kind.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm.errors import InputError
from keras_llm.recipes import runs, spans, starts, text_classification

BASELINE = "baseline"
NEXT = 'predict {out} "Who wrote it?" --context "It was written by Ada."'
_CORPORA = {"span": "reading", "yes_no": "boolq"}
_LABELS = ["no", "yes"]
_SPELLINGS = {"no": "no", "false": "no", "yes": "yes", "true": "yes"}
_SEPARATOR = "?\n"  # between question and context where both are one text


@dataclasses.dataclass
class Options(runs.Options):
    """Train an encoder that answers questions about a text."""

    kind: Literal["span", "yes_no"] = "span"
    """Whether the answer is a part of the context, or yes or no."""
    corpus: str = ""
    """A corpus of the kind "span" or "yes_no" (reading or boolq if not given); `keras-llm recipes`
    lists them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, or a folder of them, instead of a corpus."""
    question_column: str = "question"
    """The column, or JSON field, that holds the question."""
    context_column: str = "context"
    """The column, or JSON field, that holds the text that the question is about."""
    answer_column: str = "answer"
    """The column, or JSON field, that holds the answer: words of the context, or nothing where it
    has none; or yes or no."""
    start: str = starts.MINILM
    """The encoder to go on from: "minilm" for all-MiniLM-L6-v2 (91 MB), the folder of a run with an
    encoder, or "scratch" for --preset and random weights."""
    preset: str = "encoder-2m"
    """Shape of the encoder, from scratch."""
    max_length: int = 192
    """Tokens of question and context that are read at once; for spans longer contexts are read in
    several windows, for yes and no the rest is cut."""
    max_rows: int = 0
    """Use no more than this many rows for training; 0 uses all."""
    dropout: float = 0.1
    """Dropout in the encoder and before the last layer."""
    batch_size: int = 16
    """Rows in a batch."""
    epochs: int = 2
    """Passes over the training rows."""
    evaluations: int = 1
    """Held-out evaluations, points of the loss curve and checkpoints in each pass."""
    learning_rate: float = 2e-4
    """Peak learning rate; it warms up linearly."""

    distributions = ()

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_length", self.max_length > 15, "at least 16"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", "litert_lm" not in self.exports, "of saved_model, litert"),
        )
        self.corpus = self.corpus or _CORPORA[self.kind]
        if self.smoke:
            self.start, self.preset, self.vocabulary_size = "scratch", "encoder-tiny", 512
            self.max_length, self.max_rows, self.batch_size = 64, 1000, 16
            self.epochs, self.learning_rate, self.dropout = 8, 3e-3, 0.0


def run(options):
    """Train, evaluate and save.

    Args:
        options: `Options`.

    Returns:
        The dict that is saved as `metrics.json`.

    Raises:
        InputError: if an option or the data cannot be used; nothing is at `out` then.
    """
    import keras

    runs.prepare(options, "sklearn")
    train, held_out, dropped = rows(options)
    task = untrained(options, train)
    train_data, too_long = batches(task, train, options, options.seed)
    validation_data, _ = batches(task, held_out, options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = "sparse_categorical_accuracy"
    if options.kind == "span":
        loss, measures = {"start": loss, "end": loss}, {"start": [accuracy], "end": [accuracy]}
    else:
        measures = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
    optimizer = runs.optimizer(options, len(train_data))
    task.model.compile(optimizer, loss, metrics=measures, jit_compile=False)
    with runs.model_folder(options) as folder:
        trained = runs.fit(folder, options, task.model, train_data, validation_data, "windows")
        metrics = {
            "held_out": measured(task, held_out),
            **baselines(task, train, held_out),
            "training": {"rows": len(train), "dropped": dropped | too_long, **trained},
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics, held_out))
    runs.ship(options, task, metrics)
    return metrics


def rows(options):
    """The rows that the options name: training, held out, and what was dropped.

    Raises:
        InputError: if the data cannot be read, or is not of the kind.
    """
    columns = [options.question_column, options.context_column, options.answer_column]
    can_be_empty = [2] if options.kind == "span" else []
    train, held_out, dropped = runs.rows(
        options, columns, options.kind, by=1, unique=(0, 1), may_be_empty=can_be_empty
    )
    train = train[: options.max_rows or None]
    if options.kind == "yes_no":
        train, held_out = (_yes_or_no(options, side) for side in (train, held_out))
        for label in _LABELS:
            if all(row[2] != label for row in train):
                raise InputError(f"{options.source}: no training row has the answer {label!r}.")
        return train, held_out, dropped
    (train, missing), (held_out, others) = spans.located(train), spans.located(held_out)
    if not train or not held_out:
        raise InputError(f"{options.source}: no answer stands in its context.")
    missing = {name: missing.get(name, 0) + others.get(name, 0) for name in missing | others}
    for reason, count in missing.items():
        runs.say(f"{count} rows dropped: {reason}")
    return train, held_out, dropped | missing


def untrained(options, train):
    """The task before the training."""
    from keras_llm import models, tasks, tokenizers

    if options.start == "scratch":
        texts = [text for row in train for text in row[:2]]
        tokenizer = tokenizers.WordPiece.train(texts, options.vocabulary_size)
        encoder = models.preset(
            options.preset,
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=options.max_length,
            dropout=options.dropout,
        )
    else:
        start = starts.load(options.start)
        tokenizer = start.tokenizer
        encoder = starts.encoder(start, options.max_length, options.dropout)
    metadata = {"recipe": "question_answering", "options": dataclasses.asdict(options)}
    if options.kind == "yes_no":
        model = models.text_classifier(encoder, len(_LABELS), "mean", options.dropout)
        metadata["context_separator"] = _SEPARATOR
        return tasks.TextClassification(model, tokenizer, _LABELS, metadata)
    metadata["unanswerable"] = any(not answer for _, _, answer in train)
    return tasks.QuestionAnswering(models.span_qa(encoder), tokenizer, metadata)


def batches(task, rows, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and targets, and what was dropped."""
    if options.kind == "span":
        return spans.batches(task, rows, options, seed)
    questions, contexts, answers = map(list, zip(*rows, strict=True))
    texts = task.with_contexts(questions, contexts)
    labelled = list(zip(texts, answers, strict=True))
    return text_classification.batches(task, labelled, options, seed), {}


def measured(task, rows):
    """How well a task answers rows, a dict: see `training.evaluate_answers` for spans, and
    `training.evaluate_classifier` for yes and no."""
    import numpy as np

    from keras_llm import training

    questions, contexts, answers = map(list, zip(*rows, strict=True))
    if "context_separator" not in task.metadata:
        return training.evaluate_answers(task(questions, contexts, truncate=True), answers)
    found = task(questions, contexts, truncate=True, return_details=True)
    probabilities = np.array([list(row.probabilities.values()) for row in found])
    return training.evaluate_classifier([_LABELS.index(a) for a in answers], probabilities)


def baselines(task, train, held_out):
    """What answers without learning give: `baseline`, which is the sentence nearest to the
    question, or the shares of yes and no in the training rows; and for spans, if some questions
    have no answer, `no_answer`."""
    import numpy as np

    from keras_llm import training

    answers = [answer for _, _, answer in held_out]
    if "context_separator" in task.metadata:
        share = np.mean([answer == "yes" for _, _, answer in train])
        shares = np.tile([1 - share, share], (len(answers), 1))
        labels = [_LABELS.index(answer) for answer in answers]
        return {BASELINE: training.evaluate_classifier(labels, shares)}
    nearest = spans.nearest_sentences(train, held_out)
    found = {BASELINE: training.evaluate_answers(nearest, answers)}
    if task.unanswerable:
        found["no_answer"] = training.evaluate_answers([""] * len(answers), answers)
    return found


def evaluate(folder, data=None):
    """Measure a trained model on its held-out rows, or on others.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of rows, or None for those held out in training.

    Returns:
        A dict, see `measured`.
    """
    import keras_llm
    from keras_llm.data import read_records

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    if data is None:
        return measured(task, rows(options)[1])
    columns = [options.question_column, options.context_column, options.answer_column]
    found = read_records(data, columns)
    if options.kind == "yes_no":
        found = _yes_or_no(dataclasses.replace(options, data=str(data)), found)
    return measured(task, found)


def _yes_or_no(options, rows):
    """The rows with answers spelled "yes" and "no"; JSON's booleans and their words count too."""
    for question, _, answer in rows:
        if answer.lower() not in _SPELLINGS:
            raise InputError(
                f"{options.source}: the answer to {question!r} must be yes or no, got {answer!r}."
            )
    return [(question, context, _SPELLINGS[answer.lower()]) for question, context, answer in rows]


def _model_card(task, options, metrics, held_out):
    names = {BASELINE: "shares of yes and no"}
    about = "Answers questions about a text with yes or no."
    notes = ["The question and the text are read as one: question, `?`, a line break, text."]
    if options.kind == "span":
        names = {BASELINE: "nearest sentence", "no_answer": "never an answer"}
        about = "Answers questions with a part of a text."
        notes = [
            "Exact match and F1 by SQuAD's rules, each question with one reference. In training "
            "the first place counts where the context has the answer's words.",
            "It says so where a text has no answer."
            if task.unanswerable
            else "It always answers: no training question was without an answer.",
        ]
    question, context, answer = held_out[0]
    found = task(question, context, truncate=True)
    start = ""
    if options.start != "scratch":
        start = f" It goes on from `{options.start}`."
        options = dataclasses.replace(options, preset=options.start)
    return runs.card(
        options,
        metrics,
        about + start,
        {key: name for key, name in names.items() if key in metrics},
        f"{len(held_out):,} questions on texts of which none was trained on",
        [
            *notes,
            f"Reads {options.max_length} tokens at once, in a vocabulary of "
            f"{task.tokenizer.vocabulary_size}.",
            f"Example: {question!r} is answered {found!r}, expected {answer!r}.",
            "Limits: it knows only questions and texts like those it was trained on.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
