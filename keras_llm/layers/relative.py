"""Implement relative position biases: one learned value per head and distance bucket."""

import dataclasses
import math
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_llm.layers._parts import Initializer, Shape, clone
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Position option: add a learned bias by distance to scores (see `RelativePositionBias`).

    In a model, all layers share one table, as in T5; a standalone layer has its own.

    Args:
        num_buckets: int. An even number of at least 4.
        max_distance: int > `num_buckets // 2`. All distances from this one on share a bucket.
        bidirectional: bool. Whether keys after the query have separate buckets. Decoder blocks
            and models always use False.
    """

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise ValueError(
                f"RelativeBias: `num_buckets` must be even and at least 4, got {self.num_buckets}."
            )
        if self.max_distance <= self.num_buckets // 2:  # the formula divides by log(1) or less
            raise ValueError(
                f"RelativeBias: `max_distance` must be above {self.num_buckets // 2}, half of "
                f"`num_buckets`, got {self.max_distance}."
            )

    def get_config(self) -> JSON:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        return cls(**config)


@keras.saving.register_keras_serializable("keras_llm")
class RelativePositionBias(keras.layers.Layer):
    """Add a learned bias to scores, by head and by the bucket of `key - query` position.

    Of M buckets (per direction, if `bidirectional`), the first M / 2 hold one distance each. The
    others widen in proportion to the logarithm of the distance, up to `max_distance`. Without
    `bidirectional`, keys after the query share the bucket of distance 0.

    Args:
        num_buckets: int. An even number of at least 4.
        max_distance: int > `num_buckets // 2`.
        bidirectional: bool. Whether half of the buckets are for keys after the query.
        num_heads: int. N; needed only if `attention_scores` is broadcast, (B or 1, 1, T, S).
        embeddings_initializer: Keras initializer of the (num_buckets, N) table.

    Call arguments:
        attention_scores: float tensor (B, N, T, S), before the softmax.
        query_positions: int tensor (T,) or (B, T). Defaults to the last T of S positions.
        key_positions: int tensor (S,) or (B, S). Defaults to `0 .. S - 1`.

    Returns:
        Float tensor (B, N, T, S).

    Raises:
        ValueError: if `attention_scores` does not have four axes, or an argument is out of range.

    Reference:
        Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
        Text-to-Text Transformer", section 2.1.
    """

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        num_heads: int | None = None,
        embeddings_initializer: Initializer = "random_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        RelativeBias(num_buckets, max_distance)  # validates the arguments
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.num_heads = num_heads
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, attention_scores_shape: Shape) -> None:
        if len(attention_scores_shape) != 4:
            raise ValueError(
                "`attention_scores` must have shape (B, N, T, S), "
                f"got {tuple(attention_scores_shape)}."
            )
        self.table = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, self.num_heads or attention_scores_shape[1]),
            initializer=clone(self.embeddings_initializer),
            autocast=False,  # `bias` may be called within a layer of another dtype
        )
        self.built = True

    def call(
        self,
        attention_scores: Tensor,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        length, keys = ops.shape(attention_scores)[2:]
        if key_positions is None:
            key_positions = ops.arange(keys)
        if query_positions is None:
            query_positions = ops.arange(length) + keys - length
        bias = self.bias(query_positions, key_positions)
        return attention_scores + ops.cast(bias, attention_scores.dtype)

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Compute the bias (1 or B, N, T, S) without the scores that it is added to."""
        ahead = ops.expand_dims(ops.cast(key_positions, "int32"), -2) - ops.expand_dims(
            ops.cast(query_positions, "int32"), -1
        )  # (T, S) or (B, T, S)
        bias = ops.take(ops.convert_to_tensor(self.table), self._bucket(ahead), axis=0)
        return ops.moveaxis(bias, -1, -3)

    def _bucket(self, ahead: Tensor) -> Tensor:
        """Map signed distances to buckets with integer operations and precomputed bounds."""
        buckets = self.num_buckets
        offset = 0
        if self.bidirectional:
            buckets //= 2
            offset = ops.cast(ahead > 0, "int32") * buckets
            distance = ops.abs(ahead)
        else:
            distance = ops.maximum(-ahead, 0)
        bucket = ops.minimum(distance, buckets // 2)
        for bound in _bounds(buckets, self.max_distance):
            bucket = bucket + ops.cast(distance >= bound, "int32")
        return bucket + offset

    def compute_output_shape(self, attention_scores_shape: Shape) -> Shape:
        batch_size, heads, *rest = attention_scores_shape
        return (batch_size, self.num_heads or heads, *rest)

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "num_heads": self.num_heads,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


def shared_bias(
    layer: RelativePositionBias, query_positions: Tensor, key_positions: Tensor
) -> Tensor:
    """Compute the bias of a layer, (B or 1, N, T, S), once for all blocks that add it.

    Args:
        layer: a layer with `num_heads`.
        query_positions: int tensor (T,) or (B, T).
        key_positions: int tensor (S,) or (B, S).
    """
    query_positions, key_positions = (
        p if len(p.shape) == 2 else ops.expand_dims(p, 0) for p in (query_positions, key_positions)
    )
    pairs = ops.expand_dims(query_positions, -1) + ops.expand_dims(key_positions, -2)
    scores = ops.expand_dims(ops.cast(ops.zeros_like(pairs), "float32"), 1)
    return layer(scores, query_positions=query_positions, key_positions=key_positions)


def _bounds(buckets, max_distance):
    """Return the distances at which each wide bucket ends.

    The bucket of distance d is `M/2 + floor(log(d / (M/2)) / log(max / (M/2)) * M/2)`, computed in
    float32 as released models do.
    """
    exact = buckets // 2
    distance = np.arange(exact, max_distance + 1)
    ratio = np.log(distance.astype("float32") / np.float32(exact)) / math.log(max_distance / exact)
    index = np.minimum((ratio * (buckets - exact)).astype("int32"), buckets - exact - 1)
    return [int(distance[np.argmax(index >= step)]) for step in range(1, buckets - exact)]
