"""Give a text a vector, so that texts can be compared."""

import numpy as np

from keras_llm.tasks.head import HeadTask, rows_of


class TextEmbedding(HeadTask):
    """A model that gives texts vectors.

    Args:
        model: a model from `models.sentence_embedder`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary. A text goes in between
            its begin and end tokens, as far as it has them.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["once upon a time"] * 9, 80)
    >>> config = models.preset("minilm-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TextEmbedding(models.sentence_embedder(config), tok)
    >>> task(["once", "upon a time"]).shape
    (2, 64)
    """

    head = "sentence_embedder"

    def __call__(self, texts, batch_size=32, truncate=False):
        """Embed one text or several.

        Args:
            texts: str, or list of str. None may be empty.
            batch_size: int > 0. How many texts go through the model at once; texts of like
                length go together.
            truncate: bool. Whether a text that is too long is cut instead of refused.

        Returns:
            Float32 array (D,) for a str and (B, D) for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        rows = self.tokenizer.encode_batch(rows_of("texts", texts))
        rows, _ = self.framed("texts", rows, truncate)
        vectors = self.in_batches(rows, batch_size, lambda *batch: self.outputs(*batch[:2]))
        return vectors[0] if isinstance(texts, str) else np.stack(vectors)

    def similarity(self, first, second):
        """The cosine of the angle between texts.

        Args:
            first, second: str, or lists of str.

        Returns:
            A float for two str, else a float32 array with a row for each of `first` and a
            column for each of `second`.
        """
        vectors = [np.atleast_2d(self(texts)) for texts in (first, second)]
        a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in vectors)
        cosines = a @ b.T
        return (
            float(cosines[0, 0]) if isinstance(first, str) and isinstance(second, str) else cosines
        )
