"""Add DoRA adapters (weight-decomposed low-rank adaptation) to dense layers."""

import keras
from keras import ops

from keras_llm.keras_internals import adding_weights
from keras_llm.types import Tensor


class DoraDense(keras.layers.Dense):
    """A `Dense` layer with a DoRA adapter.

    `kernel = magnitude V / |V|`, with `V = W + (alpha / rank) A B` and |V| the column norms. As in
    the paper, |V| is a constant in the backward pass.

    `add_magnitude` turns a built `Dense` layer into this class. All code that reads `kernel` then
    sees the adapted kernel, including Keras when it saves merged kernels.

    Reference:
        Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", eq. 5 and section 4.3.
    """

    @property
    def kernel(self) -> Tensor:
        v = ops.cast(super().kernel, "float32")
        return ops.cast(v * (self.magnitude / ops.stop_gradient(_lengths(v))), self.compute_dtype)


def add_magnitude(layer: keras.layers.Dense, magnitude: Tensor | None = None) -> None:
    """Turn a `Dense` layer that has adapters into a `DoraDense`.

    Args:
        layer: a built `keras.layers.Dense` with adapters.
        magnitude: float array (O,). Defaults to the norms of the kernel's columns, which leaves the
            layer's output unchanged.
    """
    if magnitude is None:
        magnitude = ops.convert_to_numpy(_lengths(ops.cast(layer.kernel, "float32")))
    with adding_weights(layer):
        layer.magnitude = layer.add_weight(
            name="lora_magnitude",
            shape=magnitude.shape,
            dtype="float32",
            initializer=lambda shape, dtype: ops.convert_to_tensor(magnitude, dtype),
        )
    layer.__class__ = DoraDense


def _lengths(kernel: Tensor) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(kernel), axis=0))
