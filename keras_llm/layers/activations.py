"""Activations by name: Keras's, and those that released models need beside them."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_llm")
def gelu_tanh(x):
    """GELU by its tanh approximation, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

    Reference:
        Hendrycks and Gimpel, 2016, "Gaussian Error Linear Units".
    """
    return ops.gelu(x, approximate=True)


def get_activation(identifier):
    """The activation of that name, or `identifier` itself if it is callable.

    Args:
        identifier: name of a Keras activation or "gelu_tanh"; a callable; a serialised one.

    Raises:
        ValueError: if the name is unknown.
    """
    return gelu_tanh if identifier == "gelu_tanh" else keras.activations.get(identifier)


def activate(activation, x, training):
    """`activation(x)`. A graph of TensorFlow holds every tensor on the way to a GELU until its
    gradient is computed, five in all; in training two are held here, `x` and the output."""
    if training and keras.backend.backend() == "tensorflow":
        from keras_llm.layers.tensorflow import gelu_slope, gelu_tanh_slope, with_slope

        if activation is gelu_tanh:
            return with_slope(activation, gelu_tanh_slope, x)
        if activation is keras.activations.gelu:
            return with_slope(activation, gelu_slope, x)
    return activation(x)
