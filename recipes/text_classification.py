"""Train an encoder from scratch to sort texts into classes: sentiment, topics, or your own.

    keras-llm train text_classification --out runs/sentiment --corpus movie-sentiment
    keras-llm train text_classification --out runs/mine --data rows.csv
    keras-llm train text_classification --out runs/sentiment --start runs/words --epochs 2

Rows of text and label are cleaned and split, a WordPiece vocabulary is learned, the encoder is
trained with `fit`, and the held-out texts are sorted by it and by TF-IDF with logistic regression.
The folder `--out` gets the model, its measures, a model card and a picture of the confusions.
"""

import dataclasses
import sys

from keras_llm.errors import InputError
from keras_llm.recipes import runs, starts

BASELINE = "tfidf"
NEXT = 'predict {out} "A film to see twice."'


@dataclasses.dataclass
class Options(runs.Options):
    """Train an encoder that sorts texts into classes."""

    corpus: str = "movie-sentiment"
    """A corpus of the kind "labelled"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, or a folder of them, instead of a corpus."""
    text_column: str = "text"
    """The column, or JSON field, that holds the text."""
    label_column: str = "label"
    """The column, or JSON field, that holds the class."""
    preset: str = "encoder-2m"
    """Shape of the encoder."""
    start: str | None = None
    """Folder of a run, e.g. of `masked_lm`, whose vocabulary and encoder are the beginning, or
    "minilm" for all-MiniLM-L6-v2 (91 MB), instead of --preset and random weights."""
    max_length: int = 256
    """Tokens of a text that are read; the rest is cut."""
    max_rows: int = 0
    """Use no more than this many rows for training; 0 uses all."""
    dropout: float = 0.2
    """Dropout in the encoder and before the last layer."""
    epochs: int = 4
    """Passes over the training rows."""
    evaluations: int = 2
    """Held-out evaluations, points of the loss curve and checkpoints in each pass."""

    distributions = ()

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_length", self.max_length > 2, "at least 3"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", "litert_lm" not in self.exports, "of saved_model, litert"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.max_length = "encoder-tiny", 512, 64
            self.max_rows, self.epochs, self.batch_size = 1000, 8, 16
            self.learning_rate = 3e-3


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
    import numpy as np

    from keras_llm import tasks, training
    from keras_llm.recipes import pictures

    runs.prepare(options, "sklearn")
    train, held_out, labels, dropped = rows(options)
    model, tokenizer = classifier(options, train, len(labels))
    task = tasks.TextClassification(
        model,
        tokenizer,
        labels,
        {"recipe": "text_classification", "options": dataclasses.asdict(options)},
    )
    train_data = batches(task, train, options, options.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    measures = [
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
        training.CalibrationError(from_logits=True),
    ]
    model.compile(
        runs.optimizer(options, len(train_data)), loss, metrics=measures, jit_compile=False
    )
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder, options, model, train_data, batches(task, held_out, options), "texts"
        )
        probabilities = np.array(probabilities_of(task, held_out))
        truth = np.array([labels.index(label) for _, label in held_out])
        counts = training.confusion_matrix(truth, probabilities.argmax(-1), len(labels))
        pictures.confusion_matrix(counts, labels, folder / "confusion.png")
        baseline = tfidf_probabilities(train, held_out)
        metrics = {
            "held_out": training.evaluate_classifier(truth, probabilities),
            BASELINE: training.evaluate_classifier(truth, baseline),
            "training": {"rows": len(train), "dropped": dropped, **trained},
            "confusion": counts.tolist(),
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics))
    runs.ship(options, task, metrics)
    return metrics


def classifier(options, train, num_classes):
    """The model before training and its tokenizer, fresh or from `--start`."""
    from keras_llm import models, tokenizers

    if options.start is None:
        tokenizer = tokenizers.WordPiece.train([text for text, _ in train], options.vocabulary_size)
        sizes = {
            "vocabulary_size": tokenizer.vocabulary_size,
            "max_length": options.max_length,
            "dropout": options.dropout,
        }
        config = models.preset(options.preset, **sizes)
        return models.text_classifier(config, num_classes, "mean", options.dropout), tokenizer
    task = starts.load(options.start)
    encoder = starts.encoder(task, options.max_length, options.dropout)
    return models.text_classifier(encoder, num_classes, "mean", options.dropout), task.tokenizer


def rows(options):
    """The rows that the options name: training, held out, the labels, and what was dropped.

    Raises:
        InputError: if the data cannot be read, or has one class only.
    """
    columns = [options.text_column, options.label_column]
    train, held_out, dropped = runs.rows(options, columns, "labelled")
    if options.max_rows:
        train, held_out = train[: options.max_rows], held_out[: options.max_rows]
    labels = sorted({label for _, label in train})
    if len(labels) < 2:
        raise InputError(f"{options.source}: all training rows have the label {labels[0]!r}.")
    unknown = sorted({label for _, label in held_out} - set(labels))
    if unknown:
        raise InputError(f"{options.source}: no training row has the label {unknown[0]!r}.")
    return train, held_out, labels, dropped


def batches(task, rows, options, seed=None):
    """Rows -> `tf.data.Dataset` of the model's inputs and the classes."""
    import numpy as np

    from keras_llm import data

    ids, _ = task.framed("texts", task.tokenizer.encode_batch([text for text, _ in rows]), True)
    classes = np.array([task.labels.index(label) for _, label in rows], "int32")
    plan = data.batch_plan([len(row) for row in ids], options.batch_size, options.epochs, seed)
    dataset = data.padded_dataset({"ids": ids, "class": classes}, plan, task.tokenizer.pad_id)
    return dataset.map(lambda b: (task.inputs(b["ids"], b["ids_length"]), b["class"]))


def probabilities_of(task, rows):
    """The probability of each label for the text of each row, a list of lists."""
    found = task([text for text, _ in rows], truncate=True, return_details=True)
    return [list(row.probabilities.values()) for row in found]


def tfidf_probabilities(train, held_out):
    """What logistic regression on the TF-IDF of words gives: float array (N, C)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer()
    features = words.fit_transform([text for text, _ in train])
    regression = LogisticRegression(max_iter=1000).fit(features, [label for _, label in train])
    return regression.predict_proba(words.transform([text for text, _ in held_out]))


def evaluate(folder, data=None):
    """Measure a trained model on its held-out rows, or on others.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of rows, or None for those held out in training.

    Returns:
        A dict, see `training.evaluate_classifier`.
    """
    import keras_llm
    from keras_llm import training
    from keras_llm.data import read_records

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    columns = [options.text_column, options.label_column]
    found = read_records(data, columns) if data else rows(options)[1]
    for _, label in found:
        if label not in task.labels:
            raise InputError(f"{data}: the model has no label {label!r}.")
    truth = [task.labels.index(label) for _, label in found]
    return training.evaluate_classifier(truth, probabilities_of(task, found))


def _model_card(task, options, metrics):
    return runs.card(
        options,
        metrics,
        f"Sorts texts into {', '.join(f'`{label}`' for label in task.labels)}.",
        {BASELINE: "TF-IDF and logistic regression"},
        f"{metrics['held_out']['rows']:,} rows. `confusion.png` shows what was taken for what",
        [
            f"Reads the first {options.max_length} tokens of a text, in a vocabulary of "
            f"{task.tokenizer.vocabulary_size}.",
            "Limits: it knows only texts like those it was trained on, and its labels carry "
            "their bias.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
