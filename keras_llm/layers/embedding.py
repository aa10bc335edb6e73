"""Embed token ids and their positions."""

from typing import Any

import keras
from keras import ops

from keras_llm.layers._parts import Initializer, Shape, clone
from keras_llm.layers.position import PositionEmbedding
from keras_llm.layers.quantization import QuantizableLayer
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class TokenAndPositionEmbedding(QuantizableLayer):
    """The sum of a token embedding and a learned position embedding.

    Args:
        vocabulary_size: int > 0. V; token ids are in `0 .. V - 1`.
        sequence_length: int > 0. Maximum sequence length.
        embedding_dim: int > 0. D.
        tie_weights: bool. Whether `token_embedding(x, reverse=True)`, which computes logits over
            the vocabulary, reuses the embedding table.
        embeddings_initializer: Keras initializer of both tables.
        mask_zero: bool. Whether token id 0 is padding, which layers with masking ignore.

    Call arguments:
        inputs: int tensor (B, T), token ids.
        start_index: int or int scalar tensor. Position of the first token; ignored if
            `positions` is given.
        positions: int tensor (T,) or (B, T). Defaults to `start_index ..`.

    Returns:
        Float tensor (B, T, D).

    Example:
    >>> import numpy as np
    >>> embed = TokenAndPositionEmbedding(vocabulary_size=100, sequence_length=16, embedding_dim=8)
    >>> tuple(embed(np.zeros((2, 5), "int32")).shape)
    (2, 5, 8)
    """

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        embedding_dim: int,
        tie_weights: bool = True,
        embeddings_initializer: Initializer = "uniform",
        mask_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = mask_zero
        for name, value in (
            ("vocabulary_size", vocabulary_size),
            ("sequence_length", sequence_length),
            ("embedding_dim", embedding_dim),
        ):
            if value is None or value < 1:
                raise ValueError(f"`{name}` must be a positive int, got {value}.")
        self.vocabulary_size = int(vocabulary_size)
        self.sequence_length = int(sequence_length)
        self.embedding_dim = int(embedding_dim)
        self.tie_weights = tie_weights
        self.mask_zero = mask_zero
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.token_embedding = keras.layers.ReversibleEmbedding(
            self.vocabulary_size,
            self.embedding_dim,
            tie_weights=tie_weights,
            mask_zero=mask_zero,
            embeddings_initializer=clone(self.embeddings_initializer),
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.position_embedding = PositionEmbedding(
            self.sequence_length,
            initializer=clone(self.embeddings_initializer),
            dtype=self.dtype_policy,
            name="position_embedding",
        )

    def build(self, inputs_shape: Shape) -> None:
        self.token_embedding.build(inputs_shape)
        self.position_embedding.build((*inputs_shape, self.embedding_dim))
        self.built = True

    def call(
        self, inputs: Tensor, start_index: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        tokens = self.token_embedding(inputs)
        return tokens + self.position_embedding(
            tokens, start_index=start_index, positions=positions
        )

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return the mask of tokens other than 0, bool (B, T), if `mask_zero` is set."""
        return ops.not_equal(inputs, 0) if self.mask_zero else None

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return (*inputs_shape, self.embedding_dim)

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "sequence_length": self.sequence_length,
            "embedding_dim": self.embedding_dim,
            "tie_weights": self.tie_weights,
            "mask_zero": self.mask_zero,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
