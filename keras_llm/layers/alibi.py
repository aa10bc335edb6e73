"""Implement attention with linear biases (ALiBi): the farther a key, the lower its score."""

import dataclasses
import math
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_llm.layers._parts import Shape
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
@dataclasses.dataclass(frozen=True)
class Alibi:
    """Position option: lower scores in proportion to distance (see `AlibiBias`).

    Args:
        max_bias: float > 0. The slope of the steepest head is `2 ** (-max_bias / N)`, that of
            the flattest head `2 ** -max_bias`.
    """

    max_bias: float = 8.0

    def __post_init__(self) -> None:
        if self.max_bias <= 0:
            raise ValueError(f"Alibi: `max_bias` must be > 0, got {self.max_bias}.")

    def get_config(self) -> JSON:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        return cls(**config)


@keras.saving.register_keras_serializable("keras_llm")
class AlibiBias(keras.layers.Layer):
    """Add `-slope_n |i - j|` to the score of query position `i` and key position `j` in head `n`.

    If the number of heads N is a power of two, the slopes are `2 ** (-alibi_bias_max n / N)`,
    n = 1 .. N. Otherwise they are the slopes of the next smaller power of two, followed by every
    other slope of the next larger one.

    Args:
        alibi_bias_max: float > 0. See `max_bias` of `Alibi`.

    Call arguments:
        attention_scores: float tensor (B, N, T, S), before the softmax.
        query_positions: int tensor (T,) or (B, T). Defaults to the last T of S positions.
        key_positions: int tensor (S,) or (B, S). Defaults to `0 .. S - 1`.

    Returns:
        A tensor like `attention_scores`.

    Raises:
        ValueError: if `attention_scores` does not have four axes.

    Reference:
        Press et al., 2021, "Train Short, Test Long: Attention with Linear Biases Enables Input
        Length Extrapolation".
    """

    def __init__(self, alibi_bias_max: float = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.alibi_bias_max = alibi_bias_max

    def build(self, attention_scores_shape: Shape) -> None:
        if len(attention_scores_shape) != 4:
            raise ValueError(
                "`attention_scores` must have shape (B, N, T, S), "
                f"got {tuple(attention_scores_shape)}."
            )
        heads = attention_scores_shape[1]
        slopes = np.array(_slopes(heads, self.alibi_bias_max), "float32")
        self.slopes = slopes.reshape(1, heads, 1, 1)
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
        """Compute the bias, float32 (1 or B, N, T, S), without the scores that it is added to."""
        query_positions = ops.expand_dims(ops.cast(query_positions, "float32"), -1)
        key_positions = ops.expand_dims(ops.cast(key_positions, "float32"), -2)
        distance = ops.abs(query_positions - key_positions)  # (T, S) or (B, T, S)
        return ops.expand_dims(distance, -3) * -self.slopes

    def compute_output_shape(self, attention_scores_shape: Shape) -> Shape:
        return attention_scores_shape

    def get_config(self) -> JSON:
        return {**super().get_config(), "alibi_bias_max": self.alibi_bias_max}


def _slopes(heads, max_bias):
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-max_bias * n / power) for n in range(1, power + 1)]
    if power < heads:
        slopes += _slopes(2 * power, max_bias)[::2][: heads - power]
    return slopes
