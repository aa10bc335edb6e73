"""Look up activations by name: those of Keras and those that released models add."""

from collections.abc import Callable
from typing import TypeAlias

import keras
from keras import ops

from keras_llm.types import JSON, Tensor

# What `get_activation` reads.
Activation: TypeAlias = str | JSON | Callable[[Tensor], Tensor]


@keras.saving.register_keras_serializable("keras_llm")
def gelu_tanh(x: Tensor) -> Tensor:
    """Compute GELU by its tanh approximation, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

    Reference:
        Hendrycks and Gimpel, 2016, "Gaussian Error Linear Units".
    """
    return ops.gelu(x, approximate=True)


def get_activation(identifier: Activation | None) -> Callable[[Tensor], Tensor]:
    """Return the activation with a name, or `identifier` itself if it is callable.

    Args:
        identifier: name of a Keras activation or "gelu_tanh"; a callable; a serialized activation.

    Raises:
        ValueError: if the name is unknown.
    """
    return gelu_tanh if identifier == "gelu_tanh" else keras.activations.get(identifier)


def activate(activation: Callable[[Tensor], Tensor], x: Tensor, training: bool | None) -> Tensor:
    """Return `activation(x)`, with less memory in training.

    A TensorFlow graph keeps all five intermediate tensors of a GELU until its gradient is computed.
    In training, this function keeps two: `x` and the output.
    """
    slope = slope_of(activation) if training else None
    if slope is None:
        return activation(x)
    from keras_llm.layers.tensorflow import with_slope

    return with_slope(activation, slope, x)


def slope_of(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Return the derivative of an activation if it saves memory in TensorFlow, else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    from keras_llm.layers import tensorflow

    slopes = (
        (gelu_tanh, tensorflow.gelu_tanh_slope),
        (keras.activations.gelu, tensorflow.gelu_slope),
        (keras.activations.silu, tensorflow.silu_slope),
    )
    return next((slope for known, slope in slopes if known is activation), None)
