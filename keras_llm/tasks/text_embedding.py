"""Embed texts as vectors."""

from collections.abc import Sequence

import numpy as np

from keras_llm import data, training
from keras_llm.tasks.fitting import checked_rows
from keras_llm.tasks.head import HeadTask, rows_of
from keras_llm.types import Dataset


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

    def __call__(
        self, texts: str | list[str], batch_size: int = 32, truncate: bool = False
    ) -> np.ndarray:
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

    def similarity(self, first: str | list[str], second: str | list[str]) -> float | np.ndarray:
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

    def dataset(
        self,
        rows: Sequence[tuple[str, str]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert pairs of texts that belong together to batches.

        Args:
            rows: list of pairs (text, partner). All other texts of a batch are negatives.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of the inputs of `training.siamese`, and for each row a number that
            rows with equal first texts share.

        Raises:
            InputError: if a row is no pair.
        """
        rows = checked_rows(rows, ("text", "partner"))
        sides = [
            self.framed("rows", self.tokenizer.encode_batch(rows_of("rows", texts)), True)[0]
            for texts in map(list, zip(*rows, strict=True))
        ]
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(text, len(numbers)) for text, _ in rows]
        plan = data.batch_plan(
            [[len(row) for row in side] for side in sides], batch_size, epochs, seed
        )
        columns: dict[str, list[list[int]] | np.ndarray] = {
            "first": sides[0],
            "second": sides[1],
            "group": np.array(groups, "int32"),
        }

        def batch(b):
            inputs = {}
            for i, name in enumerate(("first", "second")):
                found = self.inputs(b[name], b[f"{name}_length"])
                inputs |= {f"{key}_{i}": value for key, value in found.items()}
            return inputs, b["group"]

        return data.padded_dataset(columns, plan, self.tokenizer.pad_id).map(batch)

    def _objective(self):
        return training.Trainer(training.siamese(self.model)), {
            "loss": training.ContrastiveLoss(symmetric=True)
        }

    def _measure(self, rows):
        """How often the nearest of all partners is the right one: `rows` and `accuracy`."""
        rows = checked_rows(rows, ("text", "partner"))
        texts, partners = map(list, zip(*rows, strict=True))
        nearest = self.similarity(texts, partners).argmax(-1)
        right = [
            partners[index] == partner for index, (_, partner) in zip(nearest, rows, strict=True)
        ]
        return {"rows": len(rows), "accuracy": float(np.mean(right))}
