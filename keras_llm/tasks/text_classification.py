"""Sort texts into classes."""

import dataclasses

from keras import ops

from keras_llm.errors import InputError
from keras_llm.tasks.head import HeadTask, checked_labels, rows_of


@dataclasses.dataclass(frozen=True)
class Classification:
    """What a text was sorted as.

    Attributes:
        label: str, the most likely.
        probability: float, its.
        probabilities: dict of every label to its probability.
        truncated: bool, whether the text was cut.
    """

    label: str
    probability: float
    probabilities: dict
    truncated: bool


class TextClassification(HeadTask):
    """A model that sorts texts into classes.

    Args:
        model: a model from `models.text_classifier`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        labels: list of str, the names of the classes. Defaults to `metadata["labels"]`, where
            they are kept.
        metadata: dict of JSON values saved with the task. With `context_separator`, a str, a text
            may have a context, which is read after the text and that separator.

    Raises:
        InputError: if the labels are not as many different strs as the model has classes.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["a good film", "a bad film"] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TextClassification(models.text_classifier(config, 2), tok, ["good", "bad"])
    >>> task("a good film") in ("good", "bad")
    True
    """

    head = "text_classifier"

    def __init__(self, model, tokenizer, labels=None, metadata=None):
        super().__init__(model, tokenizer, metadata)
        self.metadata = checked_labels(self, labels, metadata)

    @property
    def labels(self):
        """The names of the classes, a list of str."""
        return self.metadata["labels"]

    def __call__(self, texts, context=None, batch_size=32, truncate=False, return_details=False):
        """Sort one text or several.

        Args:
            texts: str, or list of str. None may be empty.
            context: str, or list of as many str, what each text is about, for a model with a
                `context_separator`. None reads texts as they are.
            batch_size: int > 0. How many texts go through the model at once.
            truncate: bool. Whether of a text that is too long the first tokens are taken,
                instead of refusing it.
            return_details: bool. Return `Classification`s instead of labels.

        Returns:
            A label for a str and a list of labels for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        rows = self.tokenizer.encode_batch(self.with_contexts(texts, context))
        rows, is_cut = self.framed("texts", rows, truncate)
        found = self.in_batches(rows, batch_size, lambda *batch: self.probabilities(*batch[:2]))
        results = [self._named(*row) for row in zip(found, is_cut, strict=True)]
        if not return_details:
            results = [result.label for result in results]
        return results[0] if isinstance(texts, str) else results

    def with_contexts(self, texts, context=None):
        """What the model reads of texts and their contexts, a list of str; arguments as of calling
        the task."""
        strings = rows_of("texts", texts)
        if context is None:
            return strings
        separator = self.metadata.get("context_separator")
        if separator is None:
            raise InputError("`context` is for models that read one with each text.")
        contexts = rows_of("context", context)
        if len(contexts) != len(strings):
            raise InputError(
                f"`context` must have as many texts as `texts`, {len(strings)}; got "
                f"{len(contexts)}."
            )
        return [f"{text}{separator}{other}" for text, other in zip(strings, contexts, strict=True)]

    def probabilities(self, token_ids, lengths):
        """Framed token ids int32 (B, T) and lengths (B,) -> probabilities float32 (B, C)."""
        return ops.softmax(self.outputs(token_ids, lengths), axis=-1)

    def _named(self, probabilities, is_cut):
        best = int(probabilities.argmax())
        return Classification(
            label=self.labels[best],
            probability=float(probabilities[best]),
            probabilities=dict(zip(self.labels, probabilities.tolist(), strict=True)),
            truncated=is_cut,
        )
