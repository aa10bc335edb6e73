"""Look up word vectors and nearest words."""

import functools

import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task
from keras_llm.tasks.settings import count_of


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
