"""Adapters that learn the length of a kernel's columns apart from their direction."""

import keras
from keras import ops


class DoraDense(keras.layers.Dense):
    """A `Dense` layer with adapters and a magnitude (DoRA).

    `kernel = magnitude V / |V|`, with `V = W + (alpha / rank) A B` and lengths of columns. As in
    the paper |V| counts as a constant in the backward pass.

    A built `Dense` layer becomes one by `add_magnitude`: what reads its kernel, Keras's saving of
    merged kernels included, then sees this one.

    Reference:
        Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", eq. 5 and section 4.3.
    """

    @property
    def kernel(self):
        v = ops.cast(super().kernel, "float32")
        return ops.cast(v * (self.magnitude / ops.stop_gradient(_lengths(v))), self.compute_dtype)


def add_magnitude(layer, magnitude=None):
    """Turn a `Dense` layer that has adapters into a `DoraDense`.

    Args:
        layer: a built `keras.layers.Dense` with adapters.
        magnitude: float array (O,). Defaults to the lengths of the kernel's columns, so that
            nothing changes.
    """
    if magnitude is None:
        magnitude = ops.convert_to_numpy(_lengths(ops.cast(layer.kernel, "float32")))
    layer._tracker.unlock()  # as Keras does for its own adapters
    layer.magnitude = layer.add_weight(
        name="lora_magnitude",
        shape=magnitude.shape,
        dtype="float32",
        initializer=lambda shape, dtype: ops.convert_to_tensor(magnitude, dtype),
    )
    layer._tracker.lock()
    layer.__class__ = DoraDense


def _lengths(kernel):
    return ops.sqrt(ops.sum(ops.square(kernel), axis=0))
