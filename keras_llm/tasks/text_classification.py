"""Classify texts."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_llm import training
from keras_llm.errors import InputError
from keras_llm.models import HeadModel
from keras_llm.tasks.fitting import checked_rows, classification_objective
from keras_llm.tasks.head import HeadTask, checked_labels, rows_of
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON, Dataset, Tensor


@dataclasses.dataclass(frozen=True)
class Classification:
    """The classification of a text.

    Attributes:
        label: str, the most likely label.
        probability: float, the probability of `label`.
        probabilities: dict of every label to its probability.
        truncated: bool, whether the text was truncated.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    truncated: bool


class TextClassification(HeadTask):
    """A task that classifies texts.

    Args:
        model: a model from `models.text_classifier`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        labels: list of str, the names of the classes. Defaults to `metadata["labels"]`, where they
            are saved.
        metadata: dict of JSON values saved with the task. With `context_separator`, a str, a text
            may have a context, which is appended after that separator. With `multi_label`, True,
            the labels are independent: the probability of each is a sigmoid, and `fit` and
            `evaluate` are not supported.

    Raises:
        InputError: if `labels` does not have one distinct str per class of the model.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["a good film", "a bad film"] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TextClassification(models.text_classifier(config, 2), tok, ["good", "bad"])
    >>> task("a good film") in ("good", "bad")
    True
    """

    head = "text_classifier"

    def __init__(
        self,
        model: HeadModel,
        tokenizer: Tokenizer,
        labels: Sequence[str] | None = None,
        metadata: JSON | None = None,
    ) -> None:
        super().__init__(model, tokenizer, metadata)
        self.metadata = checked_labels(self, labels, metadata)

    @property
    def labels(self) -> list[str]:
        """The names of the classes, a list of str."""
        return self.metadata["labels"]

    def __call__(
        self,
        texts: str | list[str],
        context: str | list[str] | None = None,
        batch_size: int = 32,
        truncate: bool = False,
        return_details: bool = False,
    ) -> str | Classification | list[str] | list[Classification]:
        """Classify one or several texts.

        Args:
            texts: non-empty str, or list of them.
            context: str, or list of str of the same length, the context of each text, for models
                with a `context_separator`; or None.
            batch_size: int > 0, the number of texts per batch.
            truncate: bool. Whether to truncate texts that are too long instead of raising an
                error.
            return_details: bool. Whether to return `Classification` objects instead of labels.

        Returns:
            A label for a str, a list of labels for a list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        rows = self.tokenizer.encode_batch(self.with_contexts(texts, context))
        rows, is_cut = self.framed("texts", rows, truncate)
        outputs = self.in_batches(rows, batch_size, lambda *batch: self.probabilities(*batch[:2]))
        results = [self._classification(*row) for row in zip(outputs, is_cut, strict=True)]
        if not return_details:
            results = [result.label for result in results]
        return results[0] if isinstance(texts, str) else results

    def dataset(
        self,
        rows: Sequence[tuple[str, ...]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert labeled texts to batches.

        Args:
            rows: list of pairs (text, label), or of triples (text, context, label) for models with
                a `context_separator`.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of the model's inputs and class indices.

        Raises:
            InputError: if a row has other fields or the model has no such label.
        """
        *texts, classes = self._columns(rows)
        return self.text_dataset(self.with_contexts(*texts), classes, batch_size, epochs, seed)

    def _columns(self, rows):
        """Return the columns of rows: texts, any contexts, and class indices, int32 (N,)."""
        if self.metadata.get("multi_label"):
            raise InputError(
                "a task with several labels for a text (`multi_label`) cannot be trained or "
                "evaluated."
            )
        rows, fields = list(rows), ("text", "label")
        has_contexts = any(isinstance(row, (list, tuple)) and len(row) == 3 for row in rows)
        if has_contexts and "context_separator" in self.metadata:
            fields = ("text", "context", "label")
        *texts, labels = map(list, zip(*checked_rows(rows, fields), strict=True))
        indices = {label: index for index, label in enumerate(self.labels)}
        for index, label in enumerate(labels):
            if not isinstance(label, str) or label not in indices:
                raise InputError(
                    f"row {index}: the model has no label {label!r}; it has {self.labels}."
                )
        classes = np.array([indices[label] for label in labels], "int32")
        return *(rows_of("rows", column) for column in texts), classes

    def _objective(self):
        return classification_objective(self)

    def _measure(self, rows):
        """`training.evaluate_classifier`."""
        *texts, classes = self._columns(rows)
        results = self(*texts, truncate=True, return_details=True)
        probabilities = np.array([list(row.probabilities.values()) for row in results])
        return training.evaluate_classifier(classes, probabilities)

    def with_contexts(
        self, texts: str | list[str], context: str | list[str] | None = None
    ) -> list[str]:
        """Join texts and their contexts to model inputs, a list of str; see `__call__`."""
        strings = rows_of("texts", texts)
        if context is None:
            return strings
        separator = self.metadata.get("context_separator")
        if separator is None:
            raise InputError("`context` is only for models that read one with each text.")
        contexts = rows_of("context", context)
        if len(contexts) != len(strings):
            raise InputError(
                f"`context` must have as many texts as `texts`, {len(strings)}, got "
                f"{len(contexts)}."
            )
        pairs = zip(strings, contexts, strict=True)
        return [f"{text}{separator}{text_context}" for text, text_context in pairs]

    def probabilities(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return class probabilities, float32 (B, C).

        Args:
            token_ids: int32 (B, T), with special tokens.
            lengths: int32 (B,).
        """
        logits = self.outputs(token_ids, lengths)
        if self.metadata.get("multi_label"):
            return ops.sigmoid(logits)
        return ops.softmax(logits, axis=-1)

    def _classification(self, probabilities, is_cut):
        best = int(probabilities.argmax())
        return Classification(
            label=self.labels[best],
            probability=float(probabilities[best]),
            probabilities=dict(zip(self.labels, probabilities.tolist(), strict=True)),
            truncated=is_cut,
        )
