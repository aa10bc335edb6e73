"""What layers need of TensorFlow alone."""

import math

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


def with_slope(function, slope, x):
    """`function(x)`, of which a training holds `x` alone: what the derivative is computed from is
    computed when the gradient of the output is there."""

    @tf.custom_gradient
    def run(x):
        def gradient(upstream):
            with tf.control_dependencies([upstream]):
                return upstream * slope(x)

        return function(x), gradient

    return run(x)
