"""Look up word vectors and nearest words."""

import functools
from collections.abc import Sequence
from typing import cast

import keras
import numpy as np

from keras_llm import data, models, training
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task, checked_texts
from keras_llm.tasks.settings import count_of
from keras_llm.tokenizers import WordPiece
from keras_llm.types import Dataset


class WordVectors(Task):
    """A task that maps words to vectors.

    Args:
        model: a model from `models.word_vectors`.
        tokenizer: a `tokenizers.Tokenizer` whose tokens are the words, e.g. from
            `data.word_vocabulary`.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece(["[PAD]", "[UNK]", "film", "story"])
    >>> task = WordVectors(models.word_vectors(models.WordVectorsConfig(4, 8)), tok)
    >>> task("film").shape, task.nearest("film")[0][0]
    ((8,), 'story')
    """

    model_wanted = "models.word_vectors"
    model: models.WordVectors

    @staticmethod
    def fits(model: object) -> bool:
        return isinstance(model, models.WordVectors)

    @functools.cached_property
    def words(self) -> list[str]:
        """The words with a vector, a list of str in the order of `table`."""
        return [self.tokenizer.token(index) for index in self._ids]

    @property
    def table(self) -> np.ndarray:
        """The vectors of `words`, float32 (W, D)."""
        return models.word_vector_table(self.model)[self._ids]

    def __call__(self, words: str | list[str]) -> np.ndarray:
        """Return the vectors of one or several words.

        Args:
            words: str, or list of str.

        Returns:
            Float32 array (D,) for a str, (B, D) for a list.

        Raises:
            InputError: if a word has no vector.
        """
        table = models.word_vector_table(self.model)
        if isinstance(words, str):
            return table[self._id(words)]
        return table[[self._id(word) for word in words]]

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """Return the words with the most similar vectors.

        Args:
            word: str.
            count: int > 0.

        Returns:
            A list of pairs (word, cosine), most similar first, without the word itself.

        Raises:
            InputError: if the word has no vector.
        """
        count = count_of("count", count, 1)
        table = self.table
        table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        row = self._ids.index(self._id(word))
        cosines = table @ table[row]
        cosines[row] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(count, len(self.words) - 1)]
        return [(self.words[index], float(cosines[index])) for index in best]

    def dataset(
        self,
        rows: Sequence[str] | np.ndarray,
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
        window: int = 5,
        negatives: int = 5,
        threshold: float | None = None,
    ) -> Dataset:
        """Convert documents to batches of words and their neighbors.

        Args:
            rows: list of str; or an int array of their words from `data.word_stream`.
            batch_size: int > 0, the number of words per batch, for GloVe the number of word pairs;
                at most as many as there are.
            epochs, seed: see `Fitting.dataset`.
            window: int > 0, the maximum distance of a neighbor.
            negatives: int > 0, negative samples per neighbor (not for GloVe).
            threshold: float in (0, 1), the relative frequency above which occurrences of a word
                are subsampled (not for GloVe); or None.

        Returns:
            A `tf.data.Dataset`, see `data.neighbor_dataset` and `data.cooccurrence_dataset`.
        """
        objective, tokenizer = self.model.config.objective, cast(WordPiece, self.tokenizer)
        if isinstance(rows, np.ndarray):
            stream = rows
        else:
            stream = data.word_stream(checked_texts("rows", rows), tokenizer, window)
        if objective == "glove":
            pairs = data.cooccurrences(stream, window)
            size = min(batch_size, len(pairs[0]))
            return data.cooccurrence_dataset(pairs, size, epochs, seed or 0)
        size = min(batch_size, int((stream > tokenizer.unk_id).sum()))
        return data.neighbor_dataset(
            stream, objective, window, negatives, size, epochs, seed or 0, threshold
        )

    def _objective(self):
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        if self.model.config.objective == "glove":
            loss = training.GloVeLoss()
        return training.Trainer(self.model), {"loss": loss}

    @functools.cached_property
    def _ids(self) -> list[int]:
        special = {self.tokenizer.pad_id, self.tokenizer.unk_id}
        special |= set(self.tokenizer.special_tokens.values())
        return [index for index in range(self.tokenizer.vocabulary_size) if index not in special]

    def _id(self, word: str) -> int:
        ids = self.tokenizer.encode(word)
        if len(ids) != 1 or ids[0] not in self._ids:
            raise InputError(f"the word {word!r} has no vector.")
        return ids[0]
