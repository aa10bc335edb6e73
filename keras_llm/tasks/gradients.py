"""Attribute a classifier's output to tokens with integrated gradients. Requires TensorFlow."""

from typing import Any

import numpy as np

from keras_llm import models
from keras_llm.types import Tensor

_POINTS = 16  # quadrature points per batch


def integrated_gradients(
    model: models.ConfiguredModel,
    inputs: dict[str, Tensor],
    baseline_ids: Tensor,
    label: int,
    steps: int = 32,
    tolerance: float = 1e-3,
    independent: bool = False,
) -> dict[str, Any]:
    """Compute the attribution of a class log-probability to each token.

    `a_t = sum_d (x - x')_td * integral_0^1 d log p(label | x' + s (x - x')) / d x_td ds`, where x
    are the token embeddings and x' those of the baseline. The integral is
    computed by Gauss-Legendre quadrature. The sum of all a_t is
    `log p(label | x) - log p(label | x')`.

    Args:
        model: a model from `models.text_classifier`, or a composed classifier.
        inputs: dict of its inputs by name, arrays of one row of T tokens.
        baseline_ids: int array (1, T), a neutral row such as mask tokens.
        label: int, the class.
        steps: int > 0, the number of quadrature points. It doubles up to four times until the error
            is below the tolerance.
        tolerance: float > 0.
        independent: bool. Whether the classes are independent, with p the sigmoid of a logit.

    Returns:
        A dict: `tokens`, float64 (T,), the a_t; `output` and `baseline`, the log-probabilities;
        and `error`, the absolute difference between the sum of a_t and `output - baseline`.

    Reference:
        Sundararajan et al., 2017, "Axiomatic Attribution for Deep Networks".
    """
    import tensorflow as tf

    x, outputs = models.from_embeddings(model, inputs)
    blank, _ = models.from_embeddings(model, {**inputs, "token_ids": baseline_ids})

    def log_probability(x):
        logits = outputs(x)
        if independent:
            return tf.math.log_sigmoid(logits[:, label])
        return tf.nn.log_softmax(logits, axis=-1)[:, label]

    def mean_gradient(steps):
        points, weights = np.polynomial.legendre.leggauss(steps)
        total = np.zeros(x.shape[1:], "float64")
        for first in range(0, steps, _POINTS):
            batch = slice(first, first + _POINTS)
            shares = tf.cast((points[batch, None, None] + 1) / 2, x.dtype)
            between = blank + shares * (x - blank)
            with tf.GradientTape() as tape:
                tape.watch(between)
                value = tf.reduce_sum(log_probability(between))
            gradients = np.asarray(tape.gradient(value, between), "float64")
            total += np.einsum("s,std->td", weights[batch] / 2, gradients)
        return total

    output, baseline = (float(log_probability(row)[0]) for row in (x, blank))
    for doubled in range(5):
        tokens = (mean_gradient(steps * 2**doubled) * np.asarray(x - blank)[0]).sum(-1)
        error = float(abs(tokens.sum() - (output - baseline)))
        if error < tolerance:
            break
    count = np.shape(inputs["token_ids"])[1]  # a composed model may pad the row
    return {"tokens": tokens[:count], "output": output, "baseline": baseline, "error": error}
