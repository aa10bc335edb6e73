"""Compare the distillation loss with its formula, and train a student from a teacher alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import models, training
from keras_llm.errors import InputError
from keras_llm.training.trainers.distillation import ChunkedDistillation

V = 31
IDS = np.random.default_rng(0).integers(1, V, (8, 11)).astype("int32")


def causal_lm(seed, **changes):
    keras.utils.set_random_seed(seed)
    shape = {"vocabulary_size": V, "num_layers": 1, "initializer_range": 0.3, **changes}
    return models.causal_lm(models.preset("llama-tiny", **shape))


def reference_loss(states, kernel, teacher_logits, targets, weights, share, t, cap):
    """Compute the loss from full logits, with TensorFlow's own gradients."""
    logits = tf.matmul(states, kernel)
    logits = logits if cap is None else cap * tf.tanh(logits / cap)
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    p, q = tf.nn.softmax(teacher_logits / t), tf.nn.softmax(logits / t)
    soft = tf.reduce_sum(p * tf.math.log(p / q), axis=-1)
    return tf.reduce_sum(weights * ((1 - share) * hard + share * t * t * soft))


@pytest.mark.parametrize("share, t, cap", [(0.5, 2.0, None), (1.0, 1.0, None), (0.3, 4.0, 3.0)])
def test_loss_and_gradients_match_formula(share, t, cap):
    r = np.random.default_rng(1)
    shapes = ((23, 5), (5, V), (23, 7), (7, V))
    states, kernel, *teacher = (tf.constant(r.normal(size=s), "float32") for s in shapes)
    targets, weights = r.integers(0, V, 23), tf.constant(r.random(23), "float32")
    loss_of = ChunkedDistillation(soft_cap=cap, chunk_size=4, share=share, temperature=t)
    head = models.OutputHead(teacher[1])
    results = []
    for function in (
        lambda: loss_of.weighted_sum(states, kernel, targets, weights, teacher=(teacher[0], head))[
            0
        ],
        lambda: reference_loss(
            states, kernel, tf.matmul(*teacher), targets, weights, share, t, cap
        ),
    ):
        with tf.GradientTape() as tape:
            tape.watch([states, kernel])
            loss = function()
        results.append([loss, *tape.gradient(loss, [states, kernel])])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def divergence(teacher, student):
    p, q = (np.asarray(keras.ops.softmax(model(IDS))) for model in (teacher, student))
    return (p * np.log(p / q)).sum(-1).mean()


def test_student_approaches_unchanged_teacher():
    teacher, student = causal_lm(1, num_layers=2), causal_lm(2)
    teacher_weights, initial_divergence = teacher.get_weights(), divergence(teacher, student)
    trainer = training.DistillationTrainer(student, teacher, share=1.0, ignore_id=0)
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    trainer.fit(IDS, np.roll(IDS, 1), batch_size=4, epochs=10, verbose=0)
    assert divergence(teacher, student) < 0.5 * initial_divergence
    for weight, initial in zip(teacher.get_weights(), teacher_weights, strict=True):
        np.testing.assert_array_equal(weight, initial)
    assert len(trainer.weights) - len(student.weights) <= 2  # the weights of the metric
    loss = trainer.evaluate(IDS, np.roll(IDS, 1), verbose=0)[0]
    plain_trainer = training.LanguageModelTrainer(student, ignore_id=0)
    plain_trainer.compile(jit_compile=False)
    assert loss == pytest.approx(
        plain_trainer.evaluate(IDS, np.roll(IDS, 1), verbose=0)[0], rel=1e-5
    )


def test_invalid_arguments_raise_error():
    student = causal_lm(0)
    for teacher, changes, message in (
        (causal_lm(0, vocabulary_size=30), {}, "teacher.*31.*30"),
        (models.encoder(models.preset("distilbert-tiny", num_layers=1)), {}, "teacher"),
        (student, {"share": 2.0}, "share"),
        (student, {"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(InputError, match=message):
            training.DistillationTrainer(student, teacher, **changes)
