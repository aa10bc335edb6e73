"""Embed texts as vectors."""

import numpy as np

from keras_llm.tasks.head import HeadTask, rows_of


class TextEmbedding(HeadTask):
    """A task that embeds texts as vectors.

    Args:
        model: a model from `models.sentence_embedder`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
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
        """Embed one or several texts.

        Args:
            texts: non-empty str, or list of them.
            batch_size: int > 0, the number of texts per batch; texts of similar length are batched
                together.
            truncate: bool. Whether to truncate texts that are too long instead of raising an
                error.

        Returns:
            Float32 array (D,) for a str, (B, D) for a list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        rows = self.tokenizer.encode_batch(rows_of("texts", texts))
        rows, _ = self.framed("texts", rows, truncate)
        vectors = self.in_batches(rows, batch_size, lambda *batch: self.outputs(*batch[:2]))
        return vectors[0] if isinstance(texts, str) else np.stack(vectors)

    def similarity(self, first, second):
        """Compute the cosine similarity of texts.

        Args:
            first, second: str, or lists of str.

        Returns:
            A float for two str; otherwise a float32 array with a row per text of `first` and a
            column per text of `second`.
        """
        vectors = [np.atleast_2d(self(texts)) for texts in (first, second)]
        a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in vectors)
        cosines = a @ b.T
        return (
            float(cosines[0, 0]) if isinstance(first, str) and isinstance(second, str) else cosines
        )
