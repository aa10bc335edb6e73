"""Train a model that answers questions: with a part of a text, with yes or no, or from memory.

    keras-llm train question_answering --out runs/answers
    keras-llm train question_answering --out runs/yes_no --kind yes_no
    keras-llm train question_answering --out runs/quiz --kind generative
    keras-llm train question_answering --out runs/mine --data rows.jsonl

Rows of question, context and answer are cleaned and split by context, and all-MiniLM-L6-v2, or
another encoder, is trained with `fit`. An empty answer says that the context has none, which the
model learns to say too. Without a context an encoder-decoder learns to answer from memory. Held-out
questions are answered by the model and by baselines of the kind.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm.recipes.common import (
    answer_spans,
    generative_answers,
    model_card,
    runs,
    tables,
    yes_no,
)

BASELINE = "baseline"
KINDS = {"span": answer_spans, "yes_no": yes_no, "generative": generative_answers}
NEXT = {name: kind.NEXT for name, kind in KINDS.items()}


@dataclasses.dataclass
class Options(runs.Options):
    """Train a model that answers questions."""

    kind: Literal["span", "yes_no", "generative"] = "span"
    """Whether the answer is a part of the context, yes or no, or told from memory."""
    corpus: str | None = None
    """A corpus of the kind (reading, boolq or trivia if not given); `keras-llm recipes` lists
    them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    question_column: str = "question"
    """The column, or JSON field, that holds the question."""
    context_column: str = "context"
    """The column, or JSON field, with the text that the question is about (not if generative)."""
    answer_column: str = "answer"
    """The column, or JSON field, that holds the answer: words of the context, or nothing where it
    has none; or yes or no; or any, several right ones kept apart by " | "."""
    start: str | None = None
    """The encoder to go on from: "minilm" for all-MiniLM-L6-v2 (91 MB), the folder of a run with an
    encoder, or "scratch" for --preset and random weights; minilm, or if generative scratch, if not
    given."""
    preset: str | None = None
    """Shape of the model from scratch (encoder-2m, or if generative seq2seq-2m, if not given)."""
    max_length: int = 192
    """Tokens of question and context that are read at once; for spans longer contexts are read in
    several windows, for yes and no the rest is cut; if generative longer rows are left out of the
    training."""
    max_rows: int = 0
    """Use no more than this many rows for training; 0 uses all."""
    test_rows: int = 1000
    """How many held-out questions a generative model answers for its measures."""
    dropout: float = 0.1
    """Dropout in the model and before the last layer."""
    batch_size: int = 16
    """Rows in a batch."""
    epochs: int | None = None
    """Passes over the training rows (2, or if generative 10, if not given)."""
    evaluations: int = 1
    """Held-out evaluations (on 32 batches), points of the loss curve, checkpoints in each pass."""
    learning_rate: float | None = None
    """Peak learning rate; it warms up linearly (2e-4, or if generative 2e-3, if not given)."""

    def __post_init__(self):
        for name, value in KINDS[self.kind].DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        is_generative = self.kind == "generative"
        super().__post_init__()
        self.check(
            ("start", not is_generative or self.start == "scratch", "left out if generative"),
            ("max_length", self.max_length > 15, "at least 16"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("test_rows", self.test_rows > 0, "a positive int"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", "litert_lm" not in self.exports, "of saved_model, litert"),
        )
        if self.smoke:
            self.start, self.dropout = "scratch", 0.0
            self.vocabulary_size = 400 if is_generative else 512
            self.preset = "seq2seq-tiny" if is_generative else "encoder-tiny"
            self.max_length, self.max_rows, self.batch_size = 64, 1000, 16
            self.epochs, self.learning_rate = 16 if is_generative else 8, 3e-3


def run(options):
    """Train, evaluate and save.

    Args:
        options: `Options`.

    Returns:
        The dict that is saved as `metrics.json`.

    Raises:
        InputError: if an option or the data cannot be used; nothing is at `out` then.
    """
    runs.prepare(options, "sklearn")
    kind = KINDS[options.kind]
    train, held_out, dropped = kind.rows(options)
    metadata = {"recipe": "question_answering", "options": dataclasses.asdict(options)}
    task = kind.untrained(options, train, metadata)
    train_data, too_long = kind.batches(task, train, options, options.seed)
    validation_data, _ = kind.batches(task, tables.to_watch(held_out, options), options)
    trainer = kind.trainer(task, options, len(train_data))
    with runs.model_folder(options) as folder:
        trained = runs.fit(folder, options, trainer, train_data, validation_data, kind.UNIT)
        metrics = {
            "held_out": kind.measured(task, held_out, options),
            **kind.baselines(task, train, held_out, options),
            "training": {"rows": len(train), "dropped": dropped | too_long, **trained},
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics, held_out))
    model_card.ship(options, task, metrics)
    return metrics


def evaluate(folder, data=None):
    """Measure a trained model on its held-out rows, or on others.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of rows, or None for those held out in training.

    Returns:
        A dict, see `training.evaluate_answers`, and of yes and no `training.evaluate_classifier`.
    """
    import keras_llm

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    kind = KINDS[options.kind]
    rows = kind.rows(options)[1] if data is None else kind.read(options, data)
    return kind.measured(task, rows, options)


def _model_card(task, options, metrics, held_out):
    kind, start = KINDS[options.kind], ""
    if options.start != "scratch":
        start = f" It goes on from `{options.start}`."
        options = dataclasses.replace(options, preset=options.start)
    return model_card.card(
        options,
        metrics,
        kind.ABOUT + start,
        {key: name for key, name in kind.BASELINES.items() if key in metrics},
        f"{metrics['held_out'].get('questions', len(held_out)):,} {kind.HELD_OUT}",
        [
            *kind.notes(task, options, held_out),
            f"Reads {options.max_length} tokens at once, in a vocabulary of "
            f"{task.tokenizer.vocabulary_size}.",
            "Limits: it knows only questions and texts like those it was trained on.",
        ],
        kind.NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
