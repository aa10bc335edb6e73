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

from keras_llm.recipes.common import model_card, pretrained, runs, tables, text_targets

BASELINE = "tfidf"
NEXT = 'predict {out} "A film to see twice."'
_CORPORA = {"class": "movie-sentiment", "number": "graded-sentiment"}


@dataclasses.dataclass
class Options(runs.Options):
    """Train an encoder that classifies or rates texts."""

    kind: Literal["class", "number"] = "class"
    """Whether the label is a class, or a number learned with the mean squared error."""
    corpus: str = ""
    """Name of a corpus of the kind "labelled" (default movie-sentiment) or "graded" (default
    graded-sentiment); `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    text_column: str = "text"
    """Column or JSON field of the text."""
    label_column: str = "label"
    """Column or JSON field of the class or the number."""
    preset: str = "encoder-2m"
    """Model preset of the encoder."""
    start: str | None = None
    """Continue from the vocabulary and the encoder of a run's folder, such as a `masked_lm` run, or
    with "minilm" from all-MiniLM-L6-v2 (91 MB), instead of --preset with random weights."""
    max_length: int = 256
    """Maximum tokens of a text; the rest is truncated."""
    max_rows: int = 0
    """Maximum number of training rows; 0 uses all."""
    dropout: float = 0.2
    """Dropout rate in the encoder and before the last layer."""
    epochs: int = 4
    """Training epochs."""
    evaluations: int = 2
    """Held-out evaluations (on 32 batches), loss curve points and checkpoints per epoch."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_length", self.max_length > 2, "at least 3"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", "litert_lm" not in self.exports, "saved_model or litert"),
        )
        self.corpus = self.corpus or _CORPORA[self.kind]
        if self.smoke:
            self.preset, self.vocabulary_size, self.max_length = "encoder-tiny", 512, 64
            self.max_rows, self.epochs, self.batch_size = 1000, 8, 16
            self.learning_rate = 3e-3


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    import numpy as np

    from keras_llm import training

    runs.prepare(options, "sklearn")
    train, held_out, kind, dropped = rows(options)
    model, tokenizer = untrained(options, train, kind)
    row = dataclasses.asdict(options)
    task = kind.task(model, tokenizer, {"recipe": "text_classification", "options": row})
    train_data = batches(task, train, kind, options, options.seed)
    trainer = training.Trainer(model)
    runs.compile_trainer(options, trainer, len(train_data), **kind.compiled())
    with runs.model_folder(options) as folder:
        validation_data = batches(task, tables.to_watch(held_out, options), kind, options)
        first = np.array([task.tokenizer.encode(held_out[0][0])[: min(32, task.room)]])
        shown = {"attention": task.inputs(first, np.array([first.shape[1]], "int32"))}
        trained = runs.fit(folder, options, trainer, train_data, validation_data, "texts", **shown)
        predicted = kind.predicted(task, held_out)
        metrics = {
            "held_out": kind.measures(held_out, predicted),
            BASELINE: kind.measures(held_out, kind.baseline(train, held_out)),
            "training": {"rows": len(train), "dropped": dropped, **trained},
            **kind.details(held_out, predicted, folder),
        }
        runs.write(folder, task, metrics, _model_card(task, kind, options, metrics))
    model_card.ship(options, task, metrics)
    return metrics


def untrained(options, train, kind):
    """Return the untrained model and its tokenizer, new or from `--start`."""
    from keras_llm import models, tokenizers

    if options.start is None:
        tokenizer = tokenizers.WordPiece.train([text for text, _ in train], options.vocabulary_size)
        sizes = {
            "vocabulary_size": tokenizer.vocabulary_size,
            "max_length": options.max_length,
            "dropout": options.dropout,
        }
        return kind.model(models.preset(options.preset, **sizes), options.dropout), tokenizer
    task = pretrained.load(options.start)
    encoder = pretrained.encoder(task, options.max_length, options.dropout)
    return kind.model(encoder, options.dropout), task.tokenizer


def rows(options):
    """Return training rows, held-out rows, their label type and dropped rows by reason.

    Raises:
        InputError: if the data cannot be read, has only one class, or a label is not a number.
    """
    columns = [options.text_column, options.label_column]
    corpora = {"class": "labelled", "number": "graded"}
    train, held_out, dropped = tables.rows(options, columns, corpora[options.kind])
    if options.max_rows:
        train, held_out = train[: options.max_rows], held_out[: options.max_rows]
    return train, held_out, text_targets.check(options, train, held_out), dropped


def batches(task, rows, kind, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and the targets."""
    texts = [text for text, _ in rows]
    return task.text_dataset(texts, kind.targets(rows), options.batch_size, options.epochs, seed)


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out rows or on other rows.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of rows, or None for the rows held out in training.

    Returns:
        A dict, see `training.evaluate_classifier` and `training.evaluate_regression`.
    """
    import keras_llm
    from keras_llm.data import read_records

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    if data is None:
        _, test, kind, _ = rows(options)
    else:
        test = read_records(data, [options.text_column, options.label_column])
        kind = text_targets.of_task(task, test, data)
    return kind.measures(test, kind.predicted(task, test))


def _model_card(task, kind, options, metrics):
    start = f" Its training continues from `{options.start}`." if options.start else ""
    options = dataclasses.replace(options, preset=options.start or options.preset)
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
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
