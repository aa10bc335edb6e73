"""Train an encoder that classifies texts by sentiment, topic or your own labels, or rates them.

    keras-llm train text_classification --out runs/sentiment --corpus movie-sentiment
    keras-llm train text_classification --out runs/mine --data rows.csv
    keras-llm train text_classification --out runs/graded --kind number
    keras-llm train text_classification --out runs/sentiment --start runs/words --epochs 2

Rows of text and label are cleaned and split, a WordPiece vocabulary is trained, and the encoder is
trained with `fit`. The baseline is logistic or ridge regression on TF-IDF. The folder `--out`
contains the model, its metrics, a model card and a plot of its predictions.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm import cli
from keras_llm.recipes.common import flags, model_card, pretrained, runs, tables, text_targets

BASELINE = "tfidf"
NEXT = 'predict {out} "A film to see twice."'
CORPUS_KINDS = ("labeled", "graded")
_CORPORA = {"class": "movie-sentiment", "number": "graded-sentiment"}


@dataclasses.dataclass
@flags.defaults(preset="encoder-2m", dropout=0.2, epochs=4, evaluations=2)
class Options(flags.RowOptions):
    """Train an encoder that classifies or rates texts."""

    kind: Literal["class", "number"] = "class"
    """Whether the label is a class, or a number learned with the mean squared error."""
    corpus: str = ""
    """Name of a corpus of the kind "labeled" (default movie-sentiment) or "graded" (default
    graded-sentiment); `keras-llm recipes` lists them."""
    text_column: str = "text"
    """Column or JSON field of the text."""
    label_column: str = "label"
    """Column or JSON field of the class or the number."""
    start: str | None = None
    """Continue from the vocabulary and the encoder of a run's folder, such as a `masked_lm` run, or
    with "minilm" from all-MiniLM-L6-v2 (91 MB), instead of --preset with random weights."""
    max_length: flags.at_least(3) = 256
    """Maximum tokens of a text; the rest is truncated."""
    learning_rate: flags.PositiveFloat | None = None
    """Peak learning rate, after linear warmup (default 1e-3, with --start 2e-4)."""

    starts = ("minilm", "scratch")
    least_vocabulary = 69  # of WordPiece: special tokens and characters

    def __post_init__(self):
        self.shrink(preset="encoder-tiny", vocabulary_size=512, max_length=64, max_rows=1000)
        self.shrink(epochs=8, batch_size=16, learning_rate=3e-3)
        self.corpus = self.corpus or _CORPORA[self.kind]
        if self.learning_rate is None:
            self.learning_rate = 1e-3 if self.start in (None, "scratch") else 2e-4
        super().__post_init__()


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    import numpy as np

    runs.prepare(options, "sklearn")
    train, held_out, kind, dropped = rows(options)
    task = untrained(options, train, kind, options.metadata("text_classification"))
    train_data = task.dataset(train, options.batch_size, options.epochs, options.seed)
    validation_data = task.dataset(tables.validation_sample(held_out, options), options.batch_size)
    baseline = kind.measures(held_out, kind.baseline(train, held_out))
    first = np.array([task.tokenizer.encode(held_out[0][0])[: min(32, task.room)]])
    with runs.start(options) as run:
        fitted = run.fit(
            task,
            train_data,
            validation_data,
            "texts",
            metrics=kind.metrics(),
            attention=task.inputs(first, np.array([first.shape[1]], "int32")),
        )
        predicted = kind.predicted(task, held_out)
        metrics = {
            "held_out": kind.measures(held_out, predicted),
            BASELINE: baseline,
            "training": {"rows": len(train), "dropped": dropped, **fitted},
            **kind.details(held_out, predicted, run.folder),
        }
        run.save(task, metrics, _model_card(task, kind, options, metrics))
    return metrics


def rows(options):
    """Return training rows, held-out rows, their label type and dropped rows by reason.

    Raises:
        InputError: if the data cannot be read, has only one class, or a label is not a number.
    """
    columns = [options.text_column, options.label_column]
    corpora = {"class": "labeled", "number": "graded"}
    train, held_out, dropped = tables.rows(options, columns, corpora[options.kind])
    if options.max_rows:
        train, held_out = train[: options.max_rows], held_out[: options.max_rows]
    return train, held_out, text_targets.check(options, train, held_out), dropped


def untrained(options, train, kind, metadata=None):
    """Return the untrained task, with a new encoder and vocabulary or those of `--start`."""
    encoder, tokenizer = pretrained.new_or_pretrained(options, [text for text, _ in train])
    return kind.task(encoder, tokenizer, options.dropout, metadata)


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out rows or on the rows of a file."""
    from keras_llm.data import read_records

    task, options = runs.load(folder, Options)
    if data is None:
        return task.evaluate(rows(options)[1])
    test = read_records(data, [options.text_column, options.label_column])
    text_targets.check_rows(task, test, data)
    return task.evaluate(test)


def texts(task):
    """Return the training and the held-out texts of a trained model, two lists of str."""
    sides = rows(runs.model_options(Options, task))[:2]
    return [[text for text, _ in side] for side in sides]


def _model_card(task, kind, options, metrics):
    start = f" Its training continues from `{options.start}`." if options.start else ""
    return model_card.card(
        options,
        metrics,
        kind.about + start,
        {BASELINE: kind.baseline_name},
        f"{metrics['held_out']['rows']:,} rows; {kind.picture}",
        [
            f"Reads the first {options.max_length} tokens of a text; vocabulary size "
            f"{task.tokenizer.vocabulary_size}.",
            "Limits: the model is reliable only on texts like its training data, and reproduces "
            "the bias of its labels.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
