"""Compute the GloVe loss."""

from typing import Any

import keras
from keras import ops

from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class GloVeLoss(keras.losses.Loss):
    """The weighted least-squares loss of GloVe.

    `loss = min(1, (X / x_max)^alpha) (prediction - log X)^2`

    Args:
        x_max: float > 0. Counts of at least this size have weight 1.
        alpha: float > 0.
        reduction, name, dtype: see `keras.losses.Loss`.

    Call arguments:
        y_true: float tensor (B,), the co-occurrence counts X of word pairs. Pairs with X = 0 have
            weight 0.
        y_pred: float tensor (B,), the predicted log counts.

    Raises:
        ValueError: if `x_max` or `alpha` is not positive.

    Reference:
        Pennington et al., 2014, "GloVe: Global Vectors for Word Representation", eq. 8 and 9.
    """

    def __init__(
        self, x_max: float = 100.0, alpha: float = 0.75, name: str = "glove_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if x_max <= 0 or alpha <= 0:
            raise ValueError(
                f"`x_max` and `alpha` must be positive, got x_max={x_max}, alpha={alpha}."
            )
        self.x_max = x_max
        self.alpha = alpha

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true = ops.reshape(ops.cast(y_true, y_pred.dtype), ops.shape(y_pred))
        weight = ops.minimum(1.0, ops.power(y_true / self.x_max, self.alpha))
        return weight * ops.square(y_pred - ops.log(ops.maximum(y_true, 1e-9)))

    def get_config(self) -> JSON:
        return {**super().get_config(), "x_max": self.x_max, "alpha": self.alpha}
