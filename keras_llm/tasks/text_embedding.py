"""Give a text a vector, so that texts can be compared."""

import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task, checked_texts, padded_rows


class TextEmbedding(Task):
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

    model_wanted = "models.sentence_embedder"

    @staticmethod
    def fits(model):
        return isinstance(model, models.HeadModel) and model.head == "sentence_embedder"

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
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"`batch_size` must be a positive int, got {batch_size!r}.")
        rows = self._encode([texts] if isinstance(texts, str) else texts, truncate)
        order = np.argsort([len(row) for row in rows], kind="stable")
        vectors = [None] * len(rows)
        for begin in range(0, len(rows), batch_size):
            batch = order[begin : begin + batch_size]
            token_ids, lengths = padded_rows(
                "texts",
                [rows[i] for i in batch],
                self.model.config.max_length,
                self.model.config.max_length,
                self.tokenizer.pad_id,
            )
            mask = np.arange(token_ids.shape[1]) < lengths[:, None]
            inputs = {"token_ids": token_ids, "padding_mask": mask}
            if len(self.model.inputs) > 2:
                inputs["segment_ids"] = np.zeros_like(token_ids)
            for i, vector in zip(batch, np.asarray(self.model(inputs)), strict=True):
                vectors[i] = vector
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

    def _encode(self, texts, truncate):
        tokenizer, longest = self.tokenizer, self.model.config.max_length
        begin = [tokenizer.bos_id] if tokenizer.add_bos else []
        end = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
        rows = tokenizer.encode_batch(list(checked_texts("texts", texts)))
        if truncate:
            rows = [ids[: longest - len(begin) - len(end)] for ids in rows]
        rows = [[*begin, *ids, *end] for ids in rows]
        # Checked before the batches, so that the message counts rows as the caller does.
        padded_rows("texts", rows, longest, longest, tokenizer.pad_id)
        return rows
