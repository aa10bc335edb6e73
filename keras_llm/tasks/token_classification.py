"""Give each word of a text a label."""

import dataclasses

import numpy as np
from keras import ops

from keras_llm.tasks.head import HeadTask, checked_labels, rows_of
from keras_llm.tokenizers.word_segmentation import word_spans


@dataclasses.dataclass(frozen=True)
class TaggedWord:
    """A word and its label.

    Attributes:
        text: str, the word.
        label: str, the most likely.
        probability: float, its.
        start, end: ints, so that the word is `text[start:end]` of the whole text.
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
        truncated: bool, whether the text was cut; the words beyond are not there.
    """

    words: list
    truncated: bool


class TokenClassification(HeadTask):
    """A model that gives each word a label: names, parts of speech.

    A word is a run without white space and punctuation, or one punctuation mark; it has the label
    of the token that holds its first character, as models are trained on the first piece of each
    word.

    Args:
        model: a model from `models.token_classifier`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        labels: list of str, the names of the classes. Defaults to `metadata["labels"]`, where
            they are kept.
        metadata: dict of JSON values saved with the task.

    Raises:
        InputError: if the labels are not as many different strs as the model has classes.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["Ada went to London."] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = TokenClassification(models.token_classifier(config, 2), tok, ["O", "NAME"])
    >>> [word for word, label in task("Ada went.")]
    ['Ada', 'went', '.']
    """

    head = "token_classifier"

    def __init__(self, model, tokenizer, labels=None, metadata=None):
        super().__init__(model, tokenizer, metadata)
        self.metadata = checked_labels(self, labels, metadata)

    @property
    def labels(self):
        """The names of the classes, a list of str."""
        return self.metadata["labels"]

    def __call__(self, texts, batch_size=32, truncate=False, return_details=False):
        """Tag one text or several.

        Args:
            texts: str, or list of str. None may be empty.
            batch_size: int > 0. How many texts go through the model at once.
            truncate: bool. Whether of a text that is too long the first tokens are taken,
                instead of refusing it.
            return_details: bool. Return a `Tagging` instead of pairs.

        Returns:
            A list of pairs (word, label) for a str, and a list of such lists for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        strings = rows_of("texts", texts)
        encoded = [self.tokenizer.encode_with_offsets(text) for text in strings]
        rows, is_cut = self.framed("texts", [ids for ids, _ in encoded], truncate)
        found = self.in_batches(rows, batch_size, lambda *batch: self.probabilities(*batch[:2]))
        spans = [offsets[: self.room] for _, offsets in encoded]
        results = [self._tagged(*row) for row in zip(strings, spans, found, is_cut, strict=True)]
        if not return_details:
            results = [[(word.text, word.label) for word in result.words] for result in results]
        return results[0] if isinstance(texts, str) else results

    def probabilities(self, token_ids, lengths):
        """Framed token ids int32 (B, T) and lengths (B,) -> probabilities float32 (B, T, C) of
        every token, the begin token included."""
        return ops.softmax(self.outputs(token_ids, lengths), axis=-1)

    def _tagged(self, text, offsets, probabilities, is_cut):
        ends = [end for _, end in offsets]
        words = []
        for start, end in word_spans(text):
            token = int(np.searchsorted(ends, start, side="right"))  # the first that ends after
            if token == len(ends):
                break
            row = probabilities[len(self.begin) + token]
            best = int(row.argmax())
            words.append(
                TaggedWord(text[start:end], self.labels[best], float(row[best]), start, end)
            )
        return Tagging(words, is_cut)
