"""What layers need of TensorFlow alone."""

import math
import os

import tensorflow as tf


def gelu_slope(x):
    """The derivative of GELU, `Phi(x) + x phi(x)`."""
    density = tf.exp(-0.5 * tf.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5)) + x * density


def gelu_tanh_slope(x):
    """The derivative of GELU's tanh approximation, which is `x sigmoid(a x + b x^3)`."""
    a = 2.0 * math.sqrt(2.0 / math.pi)
    b = 0.044715 * a
    square = tf.square(x)
    gate = tf.sigmoid(x * (a + b * square))
    return gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x) * (a + 3.0 * b * square)


def silu_slope(x):
    """The derivative of SiLU, `x sigmoid(x)`."""
    gate = tf.sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


def with_slope(function, slope, x):
    """`function(x)`, of which a training holds `x` alone: what the derivative is computed from is
    computed when the gradient of the output is there."""

    @tf.custom_gradient
    def run(x):
        def gradient(upstream):
            with tf.control_dependencies([upstream]):
                return fused(lambda x, upstream: upstream * slope(x), x, upstream)

        return fused(function, x), gradient

    return run(x)


def activated_product(activation, slope, features, kernel):
    """`activation(x) kernel`, or with a gate `(activation(x) * up) kernel`, of which a training
    holds the features and the kernel alone.

    Args:
        activation, slope: functions of one tensor, and its derivative.
        features: a list of float tensors (N, F): x, and up if there is a gate.
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

    return run(tf.convert_to_tensor(kernel), *features)  # not the variable, if it is one


def fused(function, *inputs):
    """`function(*inputs)`, whose operations XLA does in one or a few passes over the numbers,
    TensorFlow in one each. In graphs alone, and of shapes that are known, for every shape is
    compiled by itself. Not with `KERAS_LLM_XLA=0` in the environment."""
    known = all(x.shape.is_fully_defined() for x in inputs)
    if tf.executing_eagerly() or not known or os.environ.get("KERAS_LLM_XLA", "1") == "0":
        return function(*inputs)
    return tf.function(function, jit_compile=True, autograph=False)(*inputs)
