"""Test training in mixed_float16, whose numbers end at 6e-8 and 65,504."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import models, training


def float16_trainers(policy):
    shape = {"vocabulary_size": 4096, "num_layers": 1, "tie_embeddings": False}
    keras.utils.set_random_seed(0)
    model, teacher = (
        models.causal_lm(models.preset("llama-tiny", **shape), dtype=policy) for _ in range(2)
    )
    ids = np.random.default_rng(0).integers(1, 4096, (16, 2, 65)).astype("int32")
    rows = ids[:, 0]
    token_ids, weights = {"token_ids": ids[..., :-1]}, np.ones((16, 2, 64), "float32")
    pairs = (token_ids, ids[..., 1:], weights)
    return {
        "tokens": (training.LanguageModelTrainer(model), (rows[:, :-1], rows[:, 1:])),
        "teacher": (training.DistillationTrainer(model, teacher), (rows[:, :-1], rows[:, 1:])),
        "pairs": (training.PreferenceTrainer(model, training.ORPO()), pairs),
    }


@pytest.mark.parametrize("kind", ["tokens", "teacher", "pairs"])
def test_float16_gradients_do_not_underflow(kind):
    """The gradient of a logit, about 1e-7 here, is below the numbers of float16."""
    gradients = {}
    for policy, scale in (("float32", 1.0), ("mixed_float16", 2.0**12)):
        trainer, (x, y, *weights) = float16_trainers(policy)[kind]
        weights = weights[0] if weights else None
        with tf.GradientTape() as tape:
            loss = trainer.compute_loss(x, y, trainer(x, training=True), weights) * scale
        variables = trainer.trainable_variables
        gradients[policy] = [
            np.asarray(tf.convert_to_tensor(gradient), "float64") / scale
            for gradient in tape.gradient(loss, variables)
        ]
    for variable, reference, actual in zip(variables, *gradients.values(), strict=True):
        error = np.linalg.norm(actual - reference) / np.linalg.norm(reference)
        assert error < 0.02, (variable.path, error)


def test_float16_gradients_do_not_overflow():
    """Sums over a chunk, here all tokens with the same target, exceed the numbers of float16."""
    count = 4096
    states = tf.cast(tf.fill((count, 8), 100.0), "float16")
    kernel = tf.cast(tf.random.stateless_normal((8, 16), (0, 0), stddev=0.1), "float16")
    loss = training.ChunkedCrossEntropy()
    with tf.GradientTape() as tape:
        tape.watch([states, kernel])
        total, _, _ = loss.weighted_sum(
            states, kernel, tf.ones(count, "int32"), tf.ones(count) / count
        )
    for gradient in tape.gradient(total, [states, kernel]):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_models_in_mixed_float16_get_loss_scaling():
    config = models.preset("llama-tiny", vocabulary_size=64, num_layers=1)
    rows = np.arange(1, 19)[None] % 7 + np.arange(8)[:, None]
    x, y = rows[:, :-1], rows[:, 1:]
    for policy, is_scaled in (("mixed_float16", True), ("mixed_bfloat16", False)):
        trainer = training.LanguageModelTrainer(models.causal_lm(config, dtype=policy))
        trainer.compile(training.AdamW(1e-2, beta_2=0.95), jit_compile=False)
        assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer) is is_scaled
        history = trainer.fit(x, y, batch_size=4, epochs=4, verbose=0).history["loss"]
        assert history[-1] < 0.9 * history[0]


def test_trainer_passes_inputs_in_their_dtype():
    """100,000 is beyond the numbers of float16, in which only the second layer computes."""
    first = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(1e-5))
    model = keras.Sequential([first, keras.layers.Dense(1, dtype="mixed_float16")])
    x = np.array([[1e5]], "float32")
    outputs = np.asarray(model(x))
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(training.Trainer(model)(x), outputs)
