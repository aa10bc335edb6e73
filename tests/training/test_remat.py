"""Test that rematerialized blocks train like stored ones, with the same dropout."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import models, training
from keras_llm.errors import InputError

V = 37
IDS = np.random.default_rng(0).integers(2, V, (6, 9)).astype("int32")


def fit(preset, remat, **changes):
    keras.utils.set_random_seed(0)
    changes = {"vocabulary_size": V, "num_layers": 1, "dropout": 0.2, **changes}
    model = models.build(models.preset(preset, **changes))
    x, y, loss = IDS[:, :-1], IDS[:, 1:], None
    if preset == "t5-tiny":
        x = [IDS, x]
    if preset == "distilbert-tiny":
        model, x, y, loss = models.text_regressor(model), [IDS, IDS > 0], IDS[:, :1] / V, "mse"
    fitted = model if loss else training.LanguageModelTrainer(model)
    if remat:
        assert training.rematerialize(fitted) == (3 if preset == "t5-tiny" else 1)
    # Tracing the reference would take longer.
    fitted.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False, run_eagerly=not remat)
    history = fitted.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0).history
    return history["loss"], [np.asarray(v) for v in fitted.variables], fitted.predict(x, verbose=0)


@pytest.mark.parametrize(
    "preset, changes",
    [
        ("llama-tiny", {"num_experts": 4}),  # adds losses
        ("t5-tiny", {}),  # two inputs with gradients
        ("distilbert-tiny", {}),
    ],
)
def test_rematerialized_training_matches(preset, changes):
    losses, variables, outputs = fit(preset, False, **changes)
    results = fit(preset, True, **changes)
    np.testing.assert_allclose(results[0], losses, atol=1e-5)
    for actual, expected in zip(results[1], variables, strict=True):  # including dropout's state
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(results[2], outputs, atol=1e-5)


def count_matmuls(remat):
    """Return the number of matrix products in a gradient's graph."""
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V, num_layers=1))
    if remat:
        training.rematerialize(model)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(ids, training=True))
        return tape.gradient(loss, model.trainable_variables)

    graph = step.get_concrete_function(tf.TensorSpec((2, 8), "int32")).graph
    return sum("MatMul" in op.type for op in graph.get_operations())


def test_block_is_computed_twice():
    matmuls_per_block = 9  # q, k, v, output, scores, weighted sum; gate, up, down
    assert count_matmuls(True) - count_matmuls(False) == matmuls_per_block


def test_rematerialize_twice_or_without_blocks_raises_error():
    model = models.causal_lm(models.preset("llama-tiny", num_layers=1))
    training.rematerialize(model)
    with pytest.raises(InputError, match="already"):
        training.rematerialize(training.LanguageModelTrainer(model))
    with pytest.raises(InputError, match="no Transformer blocks"):
        training.rematerialize(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
