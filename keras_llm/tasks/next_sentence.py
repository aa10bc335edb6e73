"""Predict whether one passage follows another."""

import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.tasks.head import HeadTask, rows_of


class NextSentence(HeadTask):
    """A task that predicts whether the second of two passages follows the first.

    Args:
        model: a model from `models.next_sentence`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["the cat sat", "it was glad"] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = NextSentence(models.next_sentence(config), tok)
    >>> 0 < task("The cat sat.", "It was glad.") < 1
    True
    """

    head = "next_sentence"

    def __call__(
        self, first: str | list[str], second: str | list[str], batch_size: int = 32
    ) -> float | list[float]:
        """Return the probability that the second passage follows the first.

        Args:
            first, second: non-empty str, or lists of them of the same length.
            batch_size: int > 0, the number of pairs per batch.

        Returns:
            A float for two str, a list of floats for lists.

        Raises:
            InputError: if an argument is invalid, naming it, or a pair is too long.
        """
        texts = [rows_of("first", first), rows_of("second", second)]
        if len(texts[0]) != len(texts[1]):
            raise InputError(
                "`first` and `second` must have the same number of texts, got "
                f"{len(texts[0])} and {len(texts[1])}."
            )
        heads, tails = (self.tokenizer.encode_batch(part) for part in texts)
        heads = [[*ids, *self.end] for ids in heads]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        rows, _ = self.framed("first and second", rows, False)
        begins = np.array([len(self.begin) + len(head) for head in heads], "int32")

        def call(token_ids, lengths, batch):
            positions = np.arange(token_ids.shape[1])[None]
            is_second = (positions >= begins[batch, None]) & (positions < lengths[:, None])
            logits = self.outputs(token_ids, lengths, is_second.astype("int32"))
            return ops.softmax(logits, axis=-1)[:, 0]

        probabilities = [float(value) for value in self.in_batches(rows, batch_size, call)]
        return probabilities[0] if isinstance(first, str) else probabilities
