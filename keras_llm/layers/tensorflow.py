"""Compute activations and their gradients with less memory in TensorFlow."""

import math
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_llm.types import Tensor


def gelu_slope(x: Tensor) -> Tensor:
    """Compute the derivative of GELU, `Phi(x) + x phi(x)`."""
    density = tf.exp(-0.5 * tf.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5)) + x * density


def gelu_tanh_slope(x: Tensor) -> Tensor:
    """Compute the derivative of the tanh approximation of GELU, `x sigmoid(a x + b x^3)`."""
    a = 2.0 * math.sqrt(2.0 / math.pi)
    b = 0.044715 * a
    square = tf.square(x)
    gate = tf.sigmoid(x * (a + b * square))
    return gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x) * (a + 3.0 * b * square)


def silu_slope(x: Tensor) -> Tensor:
    """Compute the derivative of SiLU, `x sigmoid(x)`."""
    gate = tf.sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


def with_slope(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Return `function(x)`, keeping only `x` in memory for the gradient.

    The gradient recomputes the derivative from `x` when the gradient of the output is available.
    """

    @tf.custom_gradient
    def run(x):
        def gradient(upstream):
            with tf.control_dependencies([upstream]):
                return fused(lambda x, upstream: upstream * slope(x), x, upstream)

        return fused(function, x), gradient

    return run(x)


def activated_product(
    activation: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    features: list[Tensor],
    kernel: Tensor,
) -> Tensor:
    """Return `activation(x) kernel`, or `(activation(x) * up) kernel` with a gate.

    Only the features and the kernel are kept in memory for the gradient.

    Args:
        activation, slope: functions of one tensor; `slope` is the derivative of `activation`.
        features: a list of float tensors (N, F): x, and `up` if there is a gate.
        kernel: float tensor (F, D).

    Returns:
        Float tensor (N, D).
    """

    def inner(x, up=None):
        return activation(x) if up is None else activation(x) * up

    def backward(d_inner, x, up=None):
        y = activation(x)
        if up is None:
            return y, d_inner * slope(x)
        return y * up, d_inner * up * slope(x), d_inner * y

    @tf.custom_gradient
    def run(kernel, *features):
        def gradient(upstream):
            d_inner = tf.matmul(upstream, kernel, transpose_b=True)
            with tf.control_dependencies([upstream]):
                y, *d_features = fused(backward, d_inner, *features)
            return tf.matmul(y, upstream, transpose_a=True), *d_features

        return tf.matmul(fused(inner, *features), kernel), gradient

    return run(tf.convert_to_tensor(kernel), *features)  # a tensor, not the variable


def fused(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return `function(*inputs)`, with its operations fused by XLA.

    XLA needs one or a few passes over the data, TensorFlow one per operation. Only graphs with
    fully defined shapes are compiled, since XLA compiles each shape separately.
    `KERAS_LLM_XLA=0` in the environment disables it.
    """
    has_static_shapes = all(x.shape.is_fully_defined() for x in inputs)
    xla_disabled = os.environ.get("KERAS_LLM_XLA", "1") == "0"
    if tf.executing_eagerly() or not has_static_shapes or xla_disabled:
        return function(*inputs)
    return tf.function(function, jit_compile=True, autograph=False)(*inputs)
