"""Give a text a number."""

import dataclasses

from keras_llm.tasks.head import HeadTask, rows_of


@dataclasses.dataclass(frozen=True)
class Score:
    """The number that a text was given.

    Attributes:
        value: float, in the units that the model was trained on.
        truncated: bool, whether the text was cut.
    """

    value: float
    truncated: bool


class TextRegression(HeadTask):
    """A model that gives texts numbers, such as ratings.

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
        """Give one text or several a number.

        Args:
            texts: str, or list of str. None may be empty.
            batch_size: int > 0. How many texts go through the model at once.
            truncate: bool. Whether of a text that is too long the first tokens are taken,
                instead of refusing it.
            return_details: bool. Return `Score`s instead of floats.

        Returns:
            A float for a str and a list of floats for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        rows, is_cut = self.framed(
            "texts", self.tokenizer.encode_batch(rows_of("texts", texts)), truncate
        )
        found = self.in_batches(rows, batch_size, lambda *batch: self.outputs(*batch[:2]))
        results = [Score(float(value), cut) for value, cut in zip(found, is_cut, strict=True)]
        if not return_details:
            results = [result.value for result in results]
        return results[0] if isinstance(texts, str) else results
