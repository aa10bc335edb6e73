"""Predict a number for a text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_llm import training
from keras_llm.errors import InputError
from keras_llm.tasks.fitting import checked_rows
from keras_llm.tasks.head import HeadTask, rows_of
from keras_llm.types import Dataset


@dataclasses.dataclass(frozen=True)
class Score:
    """The predicted number of a text.

    Attributes:
        value: float, in the units of the training data.
        truncated: bool, whether the text was truncated.
    """

    value: float
    truncated: bool


class TextRegression(HeadTask):
    """A task that predicts a number for a text, such as a rating.

    Args:
        model: a model from `models.text_regressor`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["a good film", "a bad film"] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TextRegression(models.text_regressor(config), tok)
    >>> type(task("a good film"))
    <class 'float'>
    """

    head = "text_regressor"

    def __call__(
        self,
        texts: str | list[str],
        batch_size: int = 32,
        truncate: bool = False,
        return_details: bool = False,
    ) -> float | Score | list[float] | list[Score]:
        """Predict a number for one or several texts.

        Args:
            texts: non-empty str, or list of them.
            batch_size: int > 0, the number of texts per batch.
            truncate: bool. Whether to truncate texts that are too long instead of raising an
                error.
            return_details: bool. Whether to return `Score` objects instead of floats.

        Returns:
            A float for a str, a list of floats for a list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        rows, is_cut = self.framed(
            "texts", self.tokenizer.encode_batch(rows_of("texts", texts)), truncate
        )
        values = self.in_batches(rows, batch_size, lambda *batch: self.outputs(*batch[:2]))
        results: list[Any] = [
            Score(float(value), cut) for value, cut in zip(values, is_cut, strict=True)
        ]
        if not return_details:
            results = [result.value for result in results]
        return results[0] if isinstance(texts, str) else results

    def dataset(
        self,
        rows: Sequence[tuple[str, float]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert texts with numbers to batches.

        Args:
            rows: list of pairs (text, number).
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of the model's inputs and float32 targets.

        Raises:
            InputError: if a row is no pair or its number is not finite.
        """
        texts, numbers = self._texts_and_numbers(rows)
        return self.text_dataset(texts, numbers, batch_size, epochs, seed)

    @staticmethod
    def _texts_and_numbers(rows):
        rows = checked_rows(rows, ("text", "number"))
        try:
            numbers = np.array([float(number) for _, number in rows], "float32")
        except (TypeError, ValueError) as error:
            raise InputError(f"a row has no number: {error}.") from None
        if not np.isfinite(numbers).all():
            raise InputError("the numbers of rows must be finite.")
        return rows_of("rows", [text for text, _ in rows]), numbers

    def _objective(self):
        metrics = [keras.metrics.MeanAbsoluteError("absolute_error")]
        return training.Trainer(self.model), {"loss": "mse", "metrics": metrics}

    def _measure(self, rows):
        """`training.evaluate_regression`."""
        texts, numbers = self._texts_and_numbers(rows)
        return training.evaluate_regression(numbers, np.array(self(texts, truncate=True)))
