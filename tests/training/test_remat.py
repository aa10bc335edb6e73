"""Rematerialised blocks train as those that remember do, with the same dropout."""

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
    # What is compared with need not be traced.
    fitted.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False, run_eagerly=not remat)
    history = fitted.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0).history
    return history["loss"], [np.asarray(v) for v in fitted.variables], fitted.predict(x, verbose=0)


@pytest.mark.parametrize(
    "preset, changes",
    [
        ("llama-tiny", {"num_experts": 4}),  # adds losses
        ("t5-tiny", {}),  # two inputs that have gradients
        ("distilbert-tiny", {}),
    ],
)
def test_training_is_the_same(preset, changes):
    losses, variables, outputs = fit(preset, False, **changes)
    found = fit(preset, True, **changes)
    np.testing.assert_allclose(found[0], losses, atol=1e-5)
    for one, other in zip(found[1], variables, strict=True):  # the state of dropout among them
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(found[2], outputs, atol=1e-5)


def products(remat):
    """How many products of matrices the graph of a gradient has."""
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


def test_a_block_is_computed_twice():
    in_a_block = 9  # q, k, v, output, scores, weighted sum; gate, up, down
    assert products(True) - products(False) == in_a_block


def test_what_has_no_blocks_or_is_rematerialised_is_refused():
    model = models.causal_lm(models.preset("llama-tiny", num_layers=1))
    training.rematerialize(model)
    with pytest.raises(InputError, match="already"):
        training.rematerialize(training.LanguageModelTrainer(model))
    with pytest.raises(InputError, match="no Transformer blocks"):
        training.rematerialize(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
