"""Define the label types of `text_classification`: a class or a number."""

import dataclasses

from keras_llm.errors import InputError
from keras_llm.recipes.common import vocabularies

_LARGEST = 1e18  # a number whose square is finite in float32


@dataclasses.dataclass(frozen=True)
class Classes:
    """One of several classes per text.

    Attributes:
        labels: list of str.
    """

    labels: list
    baseline_name = "TF-IDF and logistic regression"
    picture = "`confusion.png` shows the confusion matrix"

    @property
    def about(self):
        """The description of the model for its card."""
        return f"Classifies texts as {', '.join(f'`{label}`' for label in self.labels)}."

    def task(self, encoder, tokenizer, dropout, metadata=None):
        """Return the untrained task: the encoder with a head."""
        from keras_llm import models, tasks

        model = models.text_classifier(encoder, len(self.labels), "mean", dropout)
        return tasks.TextClassification(model, tokenizer, self.labels, metadata)

    def metrics(self):
        """Return the metrics for `compile`."""
        import keras

        from keras_llm import training

        accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        return [accuracy, training.CalibrationError(from_logits=True)]

    def targets(self, rows):
        """Return the class index of each row, int32 (N,)."""
        import numpy as np

        indices = {label: index for index, label in enumerate(self.labels)}
        return np.array([indices[label] for _, label in rows], "int32")

    def predicted(self, task, rows):
        """Return the predicted probabilities of the labels for each row, float (N, C)."""
        import numpy as np

        results = task([text for text, _ in rows], truncate=True, return_details=True)
        return np.array([list(result.probabilities.values()) for result in results])

    def baseline(self, train, held_out):
        """Return the predictions of logistic regression on TF-IDF; see `predicted`."""
        from sklearn.linear_model import LogisticRegression

        features, held_out_features = _tfidf(train, held_out)
        regression = LogisticRegression(max_iter=1000).fit(features, self.targets(train))
        return regression.predict_proba(held_out_features)

    def measures(self, rows, predicted):
        """Compute the metrics of `training.evaluate_classifier`."""
        from keras_llm import training

        return training.evaluate_classifier(self.targets(rows), predicted)

    def details(self, rows, predicted, folder):
        """Plot the confusion matrix and return it as a dict for `metrics.json`."""
        from keras_llm import training
        from keras_llm.recipes.common import pictures

        classes = predicted.argmax(-1)
        counts = training.confusion_matrix(self.targets(rows), classes, len(self.labels))
        pictures.confusion_matrix(counts, self.labels, folder / "confusion.png")
        return {"confusion": counts.tolist()}


class Numbers:
    """A number per text, learned with the mean squared error."""

    labels = ()
    baseline_name = "TF-IDF and ridge regression"
    picture = "`scatter.png` plots predictions against true numbers"
    about = "Predicts a number for a text."

    def task(self, encoder, tokenizer, dropout, metadata=None):
        """Return the untrained task: the encoder with a head."""
        from keras_llm import models, tasks

        return tasks.TextRegression(
            models.text_regressor(encoder, "mean", dropout), tokenizer, metadata
        )

    def metrics(self):
        """Return None: the metrics of the task."""

    def targets(self, rows):
        """Return the number of each row, float32 (N,)."""
        import numpy as np

        return np.array([number(label) for _, label in rows], "float32")

    def predicted(self, task, rows):
        """Return the predicted number of each row, float (N,)."""
        import numpy as np

        return np.array(task([text for text, _ in rows], truncate=True))

    def baseline(self, train, held_out):
        """Return the predictions of ridge regression on TF-IDF; see `predicted`."""
        from sklearn.linear_model import Ridge

        features, held_out_features = _tfidf(train, held_out)
        return Ridge().fit(features, self.targets(train)).predict(held_out_features)

    def measures(self, rows, predicted):
        """Compute the metrics of `training.evaluate_regression`."""
        from keras_llm import training

        return training.evaluate_regression(self.targets(rows), predicted)

    def details(self, rows, predicted, folder):
        """Plot predictions against true numbers."""
        from keras_llm.recipes.common import pictures

        pictures.scatter(self.targets(rows), predicted, folder / "scatter.png")
        return {}


def number(text):
    """Return a str as a float that can be learned, or None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def check_rows(task, rows, source):
    """Check rows from a file.

    Raises:
        InputError: if a label is unknown to a trained task or not a number.
    """
    if not hasattr(task, "labels"):
        _check_numbers(rows, source)
    elif unknown := [label for _, label in rows if label not in task.labels]:
        raise InputError(f"{source}: the model has no label {unknown[0]!r}.")


def check(options, train, held_out):
    """Return the `Classes` or `Numbers` of rows.

    Raises:
        InputError: if the training rows have only one class, if a class occurs only in held-out
            rows, or if a label is not a number.
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
            raise InputError(
                f"{source}: the label {label!r} of {text[:40]!r} is not a number of at most "
                f"{_LARGEST:g}."
            )


def _tfidf(train, held_out):
    """Return TF-IDF of words, or of 1 and 2 characters if most texts have no spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, held_out_texts = ([text for text, _ in rows] for rows in (train, held_out))
    units = vocabularies.tfidf(texts)
    if sum(" " in text.strip() for text in texts) < len(texts) / 2:
        units = TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
    return units.fit_transform(texts), units.transform(held_out_texts)
