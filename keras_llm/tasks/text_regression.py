"""Predict a number for a text."""

import dataclasses

from keras_llm.tasks.head import HeadTask, rows_of


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

    def __call__(self, texts, batch_size=32, truncate=False, return_details=False):
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
        results = [Score(float(value), cut) for value, cut in zip(values, is_cut, strict=True)]
        if not return_details:
            results = [result.value for result in results]
        return results[0] if isinstance(texts, str) else results
