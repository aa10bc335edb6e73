"""Build word vector models: skip-gram and CBOW with negative sampling, and GloVe."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.layers.quantization import embedding_table
from keras_llm.models.base import ConfiguredModel
from keras_llm.models.config import WordVectorsConfig
from keras_llm.types import JSON


@keras.saving.register_keras_serializable("keras_llm")
class WordVectors(ConfiguredModel):
    """The functional model of a `WordVectorsConfig`. Use `word_vectors` to build one.

    Attributes:
        config: the `WordVectorsConfig`.
    """

    config_class = WordVectorsConfig
    config: WordVectorsConfig

    def __init__(
        self,
        config: WordVectorsConfig | JSON,
        name: str = "word_vectors",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.read_config(config)
        bound = 0.5 / config.embedding_dim
        narrow = keras.initializers.RandomUniform(-bound, bound)
        is_glove = config.objective == "glove"

        def table(size, initializer, name):
            return keras.layers.Embedding(
                config.vocabulary_size,
                size,
                embeddings_initializer=initializer,
                dtype=dtype,
                name=name,
            )

        word = table(config.embedding_dim, narrow, "word_embedding")
        context = table(
            config.embedding_dim, narrow.clone() if is_glove else "zeros", "context_embedding"
        )
        inputs = [
            keras.Input(shape, dtype="int32", name=name)
            for name, shape in _INPUTS[config.objective].items()
        ]
        if is_glove:
            biases = [table(1, "zeros", "word_bias"), table(1, "zeros", "context_bias")]
            product = ops.sum(word(inputs[0]) * context(inputs[1]), axis=-1)
            outputs = product + sum(
                ops.squeeze(bias(ids), -1) for bias, ids in zip(biases, inputs, strict=True)
            )
        else:
            hidden = word(inputs[0])
            if config.objective == "cbow":
                real = ops.cast(ops.not_equal(inputs[0], config.pad_id), hidden.dtype)
                total = ops.sum(hidden * ops.expand_dims(real, -1), axis=1)
                hidden = total / ops.maximum(ops.sum(real, axis=1, keepdims=True), 1.0)
            outputs = ops.squeeze(ops.matmul(context(inputs[1]), ops.expand_dims(hidden, -1)), -1)
        outputs = keras.layers.Activation("linear", dtype="float32", name="logits")(outputs)
        super().__init__(config, inputs, outputs, name, dtype, **kwargs)


_INPUTS = {
    "skip_gram": {"word": (), "candidates": (None,)},
    "cbow": {"neighbors": (None,), "candidates": (None,)},
    "glove": {"word": (), "other": ()},
}


def word_vectors(config: WordVectorsConfig, dtype: str | None = None) -> WordVectors:
    """Build a word vector model.

    Args:
        config: a `WordVectorsConfig`.
        dtype: Keras dtype policy of all layers.

    Returns:
        A `keras.Model`. For "skip_gram", from `[word, candidates]`, ints (B,) and (B, C), to
        float32 logits (B, C): whether each candidate is a neighbor; train it with
        `BinaryCrossentropy(from_logits=True)` on true neighbors and negative samples. For "cbow",
        from `[neighbors, candidates]`, ints (B, W) and (B, C), to logits (B, C): whether each
        candidate is the word between the neighbors. For "glove", from `[word, other]`, ints (B,),
        to `w . c + b + b'` (B,), the logarithm of the co-occurrence count; train it with
        `training.GloVeLoss`.

    Raises:
        InputError: if `config` is not a `WordVectorsConfig`.

    References:
        Mikolov et al., 2013, "Distributed Representations of Words and Phrases and their
        Compositionality".
        Pennington et al., 2014, "GloVe: Global Vectors for Word Representation".

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.word_vectors(models.WordVectorsConfig(100, 8))
    >>> tuple(model([np.array([5, 6]), np.array([[7, 1, 2], [8, 3, 4]])]).shape)
    (2, 3)
    """
    return WordVectors(config, dtype=dtype)


def word_vector_table(model: WordVectors) -> np.ndarray:
    """Return the vectors that a `word_vectors` model has learned.

    Args:
        model: a model from `word_vectors`.

    Returns:
        Float32 array (V, D). For "glove", the sum of a word's two vectors, as in the paper.
    """
    table = np.array(embedding_table(model.get_layer("word_embedding")), "float32")
    if model.config.objective == "glove":
        context = embedding_table(model.get_layer("context_embedding"))
        table = table + np.asarray(context, "float32")
    return table
