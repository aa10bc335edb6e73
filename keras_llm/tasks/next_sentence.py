"""Tell whether one passage follows another."""

import numpy as np
from keras import ops

from keras_llm.errors import InputError
from keras_llm.tasks.head import HeadTask, rows_of


class NextSentence(HeadTask):
    """A model that tells whether the second of two passages follows the first.

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

    def __call__(self, first, second, batch_size=32):
        """The probability that the second passage follows the first.

        Args:
            first, second: str, or lists of as many str. None may be empty.
            batch_size: int > 0. How many pairs go through the model at once.

        Returns:
            A float for two str, a list of float for lists.

        Raises:
            InputError: naming the argument that is wrong, or if a pair is too long.
        """
        texts = [rows_of("first", first), rows_of("second", second)]
        if len(texts[0]) != len(texts[1]):
            raise InputError(f"{len(texts[0])} texts `first` and {len(texts[1])} texts `second`.")
        heads, tails = (self.tokenizer.encode_batch(part) for part in texts)
        heads = [[*ids, *self.end] for ids in heads]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        rows, _ = self.framed("first and second", rows, False)
        begins = np.array([len(self.begin) + len(head) for head in heads], "int32")

        def call(token_ids, lengths, batch):
            places = np.arange(token_ids.shape[1])[None]
            is_second = (places >= begins[batch, None]) & (places < lengths[:, None])
            logits = self.outputs(token_ids, lengths, is_second.astype("int32"))
            return ops.softmax(logits, axis=-1)[:, 0]

        found = [float(value) for value in self.in_batches(rows, batch_size, call)]
        return found[0] if isinstance(first, str) else found
