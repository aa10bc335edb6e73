"""Label the words of a text."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_llm import data, training
from keras_llm.errors import InputError
from keras_llm.models import HeadModel
from keras_llm.tasks.fitting import checked_rows, classification_objective
from keras_llm.tasks.head import HeadTask, checked_labels, rows_of
from keras_llm.tokenizers import Tokenizer
from keras_llm.tokenizers.word_segmentation import word_spans
from keras_llm.types import JSON, Dataset, Tensor


@dataclasses.dataclass(frozen=True)
class TaggedWord:
    """A word and its label.

    Attributes:
        text: str, the word.
        label: str, the most likely label.
        probability: float, the probability of `label`.
        start, end: ints, character offsets: the word is `text[start:end]` of the input text.
    """

    text: str
    label: str
    probability: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Tagging:
    """A tagged text.

    Attributes:
        words: list of `TaggedWord`, in order.
        truncated: bool, whether the text was truncated; words after that point are missing.
    """

    words: list[TaggedWord]
    truncated: bool


class TokenClassification(HeadTask):
    """A task that labels each word, e.g. for named entity recognition or part-of-speech tagging.

    A word is a sequence without whitespace and punctuation, or one punctuation mark. Its label is
    that of the token with its first character, because models are trained on the first token of
    each word.

    Args:
        model: a model from `models.token_classifier`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        labels: list of str, the names of the classes. Defaults to `metadata["labels"]`, where they
            are saved.
        metadata: dict of JSON values saved with the task.

    Raises:
        InputError: if `labels` does not have one distinct str per class of the model.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["Ada went to London."] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TokenClassification(models.token_classifier(config, 2), tok, ["O", "NAME"])
    >>> [word for word, label in task("Ada went.")]
    ['Ada', 'went', '.']
    """

    head = "token_classifier"

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
        batch_size: int = 32,
        truncate: bool = False,
        return_details: bool = False,
    ) -> list[tuple[str, str]] | Tagging | list[list[tuple[str, str]]] | list[Tagging]:
        """Label the words of one or several texts.

        Args:
            texts: non-empty str, or list of them.
            batch_size: int > 0, the number of texts per batch.
            truncate: bool. Whether to truncate texts that are too long instead of raising an
                error.
            return_details: bool. Whether to return `Tagging` objects instead of pairs.

        Returns:
            A list of pairs (word, label) for a str, a list of such lists for a list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        strings = rows_of("texts", texts)
        encoded = [self.tokenizer.encode_with_offsets(text) for text in strings]
        rows, is_cut = self.framed("texts", [ids for ids, _ in encoded], truncate)
        outputs = self.in_batches(rows, batch_size, lambda *batch: self.probabilities(*batch[:2]))
        spans = [offsets[: self.room] for _, offsets in encoded]
        results = [self._tagged(*row) for row in zip(strings, spans, outputs, is_cut, strict=True)]
        if not return_details:
            results = [[(word.text, word.label) for word in result.words] for result in results]
        return results[0] if isinstance(texts, str) else results

    def dataset(
        self,
        rows: Sequence[tuple[list[str], list[str]]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert labeled words to batches.

        Args:
            rows: list of pairs (words, labels), two lists of str of the same length. Words are
                joined by spaces.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of the model's inputs, class indices int32 (B, T), and weights
            float32 (B, T), 1 at the first token of each word.

        Raises:
            InputError: if a row is something else, or the model has no such label.
        """
        columns: dict[str, list[list[int]]] = {"ids": [], "target": [], "weight": []}
        for words, labels in self._checked(rows):
            text, starts = " ".join(words), np.cumsum([0] + [len(word) + 1 for word in words[:-1]])
            ids, offsets = self.tokenizer.encode_with_offsets(text)
            ends = [end for _, end in offsets]
            target, weight = np.zeros(len(ids), int), np.zeros(len(ids), int)
            tokens = np.searchsorted(ends, starts, side="right")
            for token, label in zip(tokens, labels, strict=True):
                if token < len(ids):
                    target[token], weight[token] = self.labels.index(label), 1
            for name, values in (("ids", ids), ("target", target), ("weight", weight)):
                values = [int(value) for value in values[: self.room]]
                if name == "ids":
                    values = [*self.begin, *values, *self.end]
                else:
                    values = [0] * len(self.begin) + values + [0] * len(self.end)
                columns[name].append(values)
        plan = data.batch_plan([len(row) for row in columns["ids"]], batch_size, epochs, seed)
        pads = {"ids": self.tokenizer.pad_id, "target": 0, "weight": 0}

        def batch(b):
            import tensorflow as tf

            inputs = self.inputs(b["ids"], b["ids_length"])
            return inputs, b["target"], tf.cast(b["weight"], tf.float32)

        return data.padded_dataset(columns, plan, pads).map(batch)

    def _checked(self, rows):
        rows = checked_rows(rows, ("words", "labels"))
        for index, (words, labels) in enumerate(rows):
            if isinstance(words, str) or len(words) != len(labels) or not words:
                raise InputError(f"row {index} must have one label for each of its words.")
            for label in labels:
                if not isinstance(label, str) or label not in self.labels:
                    raise InputError(
                        f"row {index}: the model has no label {label!r}; it has {self.labels}."
                    )
        return rows

    def _objective(self):
        return classification_objective(self, metrics=None, weighted_metrics=["accuracy"])

    def _measure(self, rows):
        """`training.evaluate_classifier` of words."""
        truth, probabilities = [], []
        for inputs, targets, weights in self.dataset(rows):
            found = ops.convert_to_numpy(ops.softmax(self.model(inputs), axis=-1))
            is_first = np.asarray(weights) > 0
            truth.append(np.asarray(targets)[is_first])
            probabilities.append(found[is_first])
        return training.evaluate_classifier(np.concatenate(truth), np.concatenate(probabilities))

    def probabilities(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return class probabilities of all tokens, including special tokens: float32 (B, T, C).

        Args:
            token_ids: int32 (B, T), with special tokens.
            lengths: int32 (B,).
        """
        return ops.softmax(self.outputs(token_ids, lengths), axis=-1)

    def _tagged(self, text, offsets, probabilities, is_cut):
        ends = [end for _, end in offsets]
        words = []
        for start, end in word_spans(text):
            token = int(np.searchsorted(ends, start, side="right"))  # the first with end > start
            if token == len(ends):
                break
            row = probabilities[len(self.begin) + token]
            best = int(row.argmax())
            words.append(
                TaggedWord(text[start:end], self.labels[best], float(row[best]), start, end)
            )
        return Tagging(words, is_cut)
