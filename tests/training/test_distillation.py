"""Distillation against its formula, and a student that learns from its teacher alone."""

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


def plain(states, kernel, taught, targets, weights, share, t, cap):
    """The formula, from logits that exist, on TensorFlow's own gradients."""
    logits = tf.matmul(states, kernel)
    logits = logits if cap is None else cap * tf.tanh(logits / cap)
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    p, q = tf.nn.softmax(taught / t), tf.nn.softmax(logits / t)
    soft = tf.reduce_sum(p * tf.math.log(p / q), axis=-1)
    return tf.reduce_sum(weights * ((1 - share) * hard + share * t * t * soft))


@pytest.mark.parametrize("share, t, cap", [(0.5, 2.0, None), (1.0, 1.0, None), (0.3, 4.0, 3.0)])
def test_loss_and_gradients_are_those_of_the_formula(share, t, cap):
    r = np.random.default_rng(1)
    shapes = ((23, 5), (5, V), (23, 7), (7, V))
    states, kernel, *teacher = (tf.constant(r.normal(size=s), "float32") for s in shapes)
    targets, weights = r.integers(0, V, 23), tf.constant(r.random(23), "float32")
    loss_of = ChunkedDistillation(soft_cap=cap, chunk_size=4, share=share, temperature=t)
    head = models.OutputHead(teacher[1])
    found = []
    for function in (
        lambda: loss_of.weighted_sum(states, kernel, targets, weights, teacher=(teacher[0], head))[
            0
        ],
        lambda: plain(states, kernel, tf.matmul(*teacher), targets, weights, share, t, cap),
    ):
        with tf.GradientTape() as tape:
            tape.watch([states, kernel])
            loss = function()
        found.append([loss, *tape.gradient(loss, [states, kernel])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def divergence(teacher, student):
    p, q = (np.asarray(keras.ops.softmax(model(IDS))) for model in (teacher, student))
    return (p * np.log(p / q)).sum(-1).mean()


def test_a_student_comes_near_its_teacher_which_stays():
    teacher, student = causal_lm(1, num_layers=2), causal_lm(2)
    before, first = teacher.get_weights(), divergence(teacher, student)
    trainer = training.DistillationTrainer(student, teacher, share=1.0, ignore_id=0)
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    trainer.fit(IDS, np.roll(IDS, 1), batch_size=4, epochs=10, verbose=0)
    assert divergence(teacher, student) < 0.5 * first
    for one, other in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(trainer.weights) - len(student.weights) <= 2  # the metric's
    found = trainer.evaluate(IDS, np.roll(IDS, 1), verbose=0)[0]
    other = training.LanguageModelTrainer(student, ignore_id=0)
    other.compile(jit_compile=False)
    assert found == pytest.approx(other.evaluate(IDS, np.roll(IDS, 1), verbose=0)[0], rel=1e-5)


def test_what_does_not_fit_is_named():
    student = causal_lm(0)
    for teacher, changes, words in (
        (causal_lm(0, vocabulary_size=30), {}, "teacher.*31.*30"),
        (models.encoder(models.preset("distilbert-tiny", num_layers=1)), {}, "teacher"),
        (student, {"share": 2.0}, "share"),
        (student, {"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(InputError, match=words):
            training.DistillationTrainer(student, teacher, **changes)
