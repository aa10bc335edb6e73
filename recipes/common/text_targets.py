"""What `text_classification` learns of a text: which class it is of, or a number."""

import dataclasses

from keras_llm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Classes:
    """Which of several classes a text is of.

    Attributes:
        labels: list of str.
    """

    labels: list
    baseline_name = "TF-IDF and logistic regression"
    picture = "`confusion.png` shows what was taken for what"

    @property
    def about(self):
        """What the model does, for its card."""
        return f"Sorts texts into {', '.join(f'`{label}`' for label in self.labels)}."

    def model(self, encoder, dropout):
        """The encoder with a head."""
        from keras_llm import models

        return models.text_classifier(encoder, len(self.labels), "mean", dropout)

    def task(self, model, tokenizer, metadata):
        """The model with its tokenizer."""
        from keras_llm import tasks

        return tasks.TextClassification(model, tokenizer, self.labels, metadata)

    def compiled(self):
        """Arguments of `compile`."""
        import keras

        from keras_llm import training

        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": [
                keras.metrics.SparseCategoricalAccuracy("accuracy"),
                training.CalibrationError(from_logits=True),
            ],
        }

    def targets(self, rows):
        """The class of each row, int32 (N,)."""
        import numpy as np

        places = {label: place for place, label in enumerate(self.labels)}
        return np.array([places[label] for _, label in rows], "int32")

    def predicted(self, task, rows):
        """The probability of each label for the text of each row, float (N, C)."""
        import numpy as np

        found = task([text for text, _ in rows], truncate=True, return_details=True)
        return np.array([list(row.probabilities.values()) for row in found])

    def baseline(self, train, held_out):
        """What logistic regression on the TF-IDF of words gives, as of `predicted`."""
        from sklearn.linear_model import LogisticRegression

        features, asked = _tfidf(train, held_out)
        regression = LogisticRegression(max_iter=1000).fit(features, self.targets(train))
        return regression.predict_proba(asked)

    def measures(self, rows, predicted):
        """See `training.evaluate_classifier`."""
        from keras_llm import training

        return training.evaluate_classifier(self.targets(rows), predicted)

    def details(self, rows, predicted, folder):
        """Draw what was taken for what: the counts, a dict for `metrics.json`."""
        from keras_llm import training
        from keras_llm.recipes.common import pictures

        found = predicted.argmax(-1)
        counts = training.confusion_matrix(self.targets(rows), found, len(self.labels))
        pictures.confusion_matrix(counts, self.labels, folder / "confusion.png")
        return {"confusion": counts.tolist()}


class Numbers:
    """A number, learned with the mean squared error."""

    labels = ()
    baseline_name = "TF-IDF and ridge regression"
    picture = "`scatter.png` shows each number beside the right one"
    about = "Gives texts numbers."

    def model(self, encoder, dropout):
        """The encoder with a head."""
        from keras_llm import models

        return models.text_regressor(encoder, "mean", dropout)

    def task(self, model, tokenizer, metadata):
        """The model with its tokenizer."""
        from keras_llm import tasks

        return tasks.TextRegression(model, tokenizer, metadata)

    def compiled(self):
        """Arguments of `compile`."""
        import keras

        return {"loss": "mse", "metrics": [keras.metrics.MeanAbsoluteError("absolute_error")]}

    def targets(self, rows):
        """The number of each row, float32 (N,)."""
        import numpy as np

        return np.array([number(label) for _, label in rows], "float32")

    def predicted(self, task, rows):
        """What the model gives for the text of each row, float (N,)."""
        import numpy as np

        return np.array(task([text for text, _ in rows], truncate=True))

    def baseline(self, train, held_out):
        """What ridge regression on the TF-IDF of words gives, as of `predicted`."""
        from sklearn.linear_model import Ridge

        features, asked = _tfidf(train, held_out)
        return Ridge().fit(features, self.targets(train)).predict(asked)

    def measures(self, rows, predicted):
        """See `training.evaluate_regression`."""
        from keras_llm import training

        return training.evaluate_regression(self.targets(rows), predicted)

    def details(self, rows, predicted, folder):
        """Draw each number beside the right one."""
        from keras_llm.recipes.common import pictures

        pictures.scatter(self.targets(rows), predicted, folder / "scatter.png")
        return {}


def number(text):
    """A str as a finite float, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def of_task(task, rows, source):
    """The `Classes` or `Numbers` of a trained task, of which rows from a file are.

    Raises:
        InputError: if they have another label, or no number.
    """
    if hasattr(task, "labels"):
        for _, label in rows:
            if label not in task.labels:
                raise InputError(f"{source}: the model has no label {label!r}.")
        return Classes(task.labels)
    _check_numbers(rows, source)
    return Numbers()


def check(options, train, held_out):
    """The `Classes` or `Numbers` that rows are of.

    Raises:
        InputError: if the training has one class only, or the held-out rows another; or if
            something is no number.
    """
    if options.kind == "number":
        _check_numbers(train + held_out, options.source)
        return Numbers()
    labels = sorted({label for _, label in train})
    if len(labels) < 2:
        raise InputError(f"{options.source}: all training rows have the label {labels[0]!r}.")
    unknown = sorted({label for _, label in held_out} - set(labels))
    if unknown:
        raise InputError(f"{options.source}: no training row has the label {unknown[0]!r}.")
    return Classes(labels)


def _check_numbers(rows, source):
    for text, label in rows:
        if number(label) is None:
            raise InputError(f"{source}: {label!r}, of {text[:40]!r}, is no number.")


def _tfidf(train, held_out):
    """The TF-IDF of words, or of characters and pairs of them where most texts have no spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, asked = ([text for text, _ in rows] for rows in (train, held_out))
    units = TfidfVectorizer()
    if sum(" " in text.strip() for text in texts) < len(texts) / 2:
        units = TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
    return units.fit_transform(texts), units.transform(asked)
