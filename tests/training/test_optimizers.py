"""Compare schedules with their formulas and optimizers with NumPy and Keras."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import models, training
from keras_llm.errors import InputError
from keras_llm.training.optimizers import quantized_moments

PEAK, TOTAL, WARMUP, FINAL = 0.5, 100, 10, 0.2


def expected_rate(decay, step):
    step = min(step, TOTAL)
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (TOTAL - WARMUP)
    return (
        PEAK
        * {
            "cosine": FINAL + (1 - FINAL) * (1 + math.cos(math.pi * progress)) / 2,
            "linear": 1 - (1 - FINAL) * progress,
            "inverse_sqrt": math.sqrt(WARMUP / step),
            "wsd": 1 if step < 70 else 1 - (1 - FINAL) * (step - 70) / 30,
            "constant": 1,
        }[decay]
    )


@pytest.mark.parametrize("decay", ["cosine", "linear", "inverse_sqrt", "wsd", "constant"])
def test_schedules_match_formulas(decay):
    schedule = training.WarmupDecay(PEAK, TOTAL, WARMUP, decay, FINAL, decay_share=0.3)
    restored = training.WarmupDecay.from_config(schedule.get_config())
    for step in (0, 1, 9, 10, 11, 50, 69, 70, 71, 99, 100, 150):
        assert float(schedule(step)) == pytest.approx(expected_rate(decay, step), rel=1e-5)
        assert float(restored(tf.constant(step))) == pytest.approx(float(schedule(step)))


def test_invalid_schedules_raise_error():
    for changes, message in (
        ({"peak": 0.0}, "peak"),
        ({"total_steps": 0}, "total_steps"),
        ({"warmup_steps": 100}, "warmup_steps"),
        ({"decay": "steps"}, "decay"),
        ({"final_share": 2.0}, "final_share"),
        ({"decay_share": 0.0}, "decay_share"),
        ({"decay": "inverse_sqrt"}, "warmup_steps"),
    ):
        with pytest.raises(InputError, match=message):
            training.WarmupDecay(**{"peak": 1.0, "total_steps": 100, **changes})


def make_variables(*shapes):
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape), dtype="float32", name=name) for name, shape in shapes
    ]


def test_weight_decay_skips_biases_and_norms():
    model = models.causal_lm(models.preset("llama-tiny", use_bias=True, norm="layer", num_layers=1))
    optimizer = training.AdamW(0.1, weight_decay=0.5)
    before = [np.asarray(w) for w in model.weights]
    optimizer.apply([w * 0 for w in model.weights], model.trainable_weights)
    for weight, old in zip(model.weights, before, strict=True):
        skipped = weight.name in ("bias", "gamma", "beta")
        np.testing.assert_allclose(weight, old * (1.0 if skipped else 0.95), rtol=1e-5)
    assert any(w.name == "bias" for w in model.weights)


@pytest.mark.parametrize("make", [training.AdamW, training.Lion, training.Muon])
def test_optimizers_train_and_serialize(make):
    keras.utils.set_random_seed(0)
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=37, num_layers=1))
    trainer = training.LanguageModelTrainer(model)
    schedule = training.WarmupDecay(3e-3, 40, 4)
    optimizer = make(schedule, global_clipnorm=1.0, skip_factor=5.0)
    config = keras.saving.serialize_keras_object(optimizer)
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is make and restored.get_config() == optimizer.get_config()
    trainer.compile(optimizer, jit_compile=False)
    ids = np.tile(np.arange(2, 14, dtype="int32"), (16, 1))
    history = trainer.fit(ids[:, :-1], ids[:, 1:], batch_size=4, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert float(optimizer.gradient_norm) > 0 and float(optimizer.skipped) == 0


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_fused_adam_matches_keras(name, dtype, tolerance):
    rng = np.random.default_rng(0)
    start, *gradients = rng.normal(size=(5, 6, 4))
    betas = {"adam_beta_2" if name == "Muon" else "beta_2": 0.95}

    def train(make):
        variable = keras.Variable(start, dtype=dtype, name="embedding")
        optimizer = make(1e-2, **betas)
        optimizer.build([variable])
        step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
        for gradient in gradients:
            step(tf.cast(gradient, dtype))
        graph = step.get_concrete_function(tf.TensorSpec(start.shape, dtype)).graph
        return np.asarray(variable.value, "float64"), {op.type for op in graph.get_operations()}

    expected, _ = train(getattr(keras.optimizers, name))
    actual, operations = train(getattr(training, name))
    assert "ResourceApplyAdam" in operations
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance / 8)
    assert np.abs(expected - start).mean() > 0.02


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (8, 12), (3, 8, 32)])
def test_muon_orthogonalization_matches_keras(shape):
    gradient = np.random.default_rng(0).normal(size=shape).astype("float32")
    gradient[..., 0, :] = gradient[..., 1, :] * 0.999  # one singular value is almost zero
    ours, theirs = training.Muon(), keras.optimizers.Muon()
    for steps in (1, 5):
        expected = np.asarray(theirs.zeropower_via_newtonschulz5(gradient, steps))
        actual = np.asarray(ours.zeropower_via_newtonschulz5(gradient, steps))
        assert actual.shape == shape
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_norm_and_clipping_use_summed_sparse_gradient():
    """An embedding's gradient has one row per token; rows of the same token are summed first."""
    table = keras.Variable(np.ones((5, 2)), name="embeddings")
    values = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    rows = tf.IndexedSlices(tf.constant(values, "float32"), tf.constant([1, 1, 4]), [5, 2])
    gradient = np.zeros((5, 2))
    np.add.at(gradient, [1, 1, 4], values)
    optimizer = training.Lion(0.0)
    optimizer.apply([rows], [table])
    norm = np.sqrt((gradient**2).sum())
    assert float(optimizer.gradient_norm) == pytest.approx(norm)
    clipped = training.AdamW(1.0, global_clipnorm=0.5, beta_1=0.9, beta_2=0.9, weight_decay=0.0)
    clipped.apply([rows], [table])
    momentum = next(v for v in clipped.variables if "momentum" in v.path)
    np.testing.assert_allclose(momentum, 0.1 * gradient * 0.5 / norm, rtol=1e-5)


def test_outlier_gradients_are_skipped():
    (kernel,) = make_variables(("kernel", (3,)))
    optimizer = training.AdamW(0.1, skip_factor=4.0)
    step = tf.function(lambda g: optimizer.apply([g], [kernel]))
    optimizer.build([kernel])
    for _ in range(25):
        step(tf.ones((3,)))
    before = [np.asarray(v) for v in (kernel, *optimizer.variables) if v.path[-4:] != "norm"]
    for value in (100.0, math.nan, math.inf):
        step(tf.fill((3,), value))
    after = [np.asarray(v) for v in (kernel, *optimizer.variables) if v.path[-4:] != "norm"]
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if np.any(a != b)]
    names = [v.name for v in (kernel, *optimizer.variables) if v.path[-4:] != "norm"]
    assert {names[i] for i in changed} == {"iteration", "skipped"}
    assert float(optimizer.skipped) == 3 and int(optimizer.iterations) == 28
    step(tf.ones((3,)))
    assert np.any(np.asarray(kernel) != before[0])


def test_repeated_large_gradients_are_accepted():
    (kernel,) = make_variables(("kernel", (3,)))
    optimizer = training.AdamW(0.1, skip_factor=5.0)
    step = tf.function(lambda g: optimizer.apply([g], [kernel]))
    optimizer.build([kernel])
    for size in [1.0] * 25 + [10.0] * 20:
        step(tf.fill((3,), size))
    assert 1 < float(optimizer.skipped) < 10


def test_schedule_counts_updates_with_gradient_accumulation():
    (kernel,) = make_variables(("kernel", (3,)))
    schedule = training.WarmupDecay(1.0, total_steps=4, warmup_steps=0, decay="linear")
    optimizer = training.AdamW(schedule, gradient_accumulation_steps=3)
    optimizer.build([kernel])
    rates = []
    for _ in range(9):
        rates.append(float(optimizer.learning_rate))
        optimizer.apply([tf.ones((3,))], [kernel])
    assert rates == pytest.approx(np.repeat([float(schedule(i)) for i in range(3)], 3).tolist())
    assert rates[0] > rates[3] > rates[6] > 0


def test_gradient_accumulation_matches_large_batch():
    keras.utils.set_random_seed(0)
    config = models.preset("llama-tiny", vocabulary_size=37, num_layers=1)
    ids = np.random.default_rng(0).integers(2, 37, (8, 10)).astype("int32")
    weights = []
    for steps, size in ((None, 8), (4, 2)):
        keras.utils.set_random_seed(0)
        model = models.causal_lm(config)
        trainer = training.LanguageModelTrainer(model)
        optimizer = training.AdamW(
            1e-3, epsilon=1e-3, global_clipnorm=0.1, gradient_accumulation_steps=steps
        )
        # Tracing the reference would take longer.
        trainer.compile(optimizer, jit_compile=False, run_eagerly=steps is None)
        trainer.fit(ids[:, :-1], ids[:, 1:], batch_size=size, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for actual, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("power, signed, max_code", [(2, True, 127), (4, False, 254.5)])
def test_8_bit_moments_are_off_by_at_most_half_a_code(power, signed, max_code):
    optimizer, (variable,) = keras.optimizers.SGD(), make_variables(("matrix", (6, 800)))
    optimizer.build([variable])
    moment = quantized_moments.QuantizedMoment(optimizer, variable, "average", signed)
    np.testing.assert_array_equal(moment.read(), np.zeros((6, 800)))
    numbers = np.random.default_rng(0).normal(size=(6, 800)) ** 3
    numbers = (numbers if signed else numbers**2).astype("float32")
    numbers *= 10.0 ** np.arange(-9, 9, 3, dtype="float32")[:, None]
    numbers[0], numbers[:, :2] = 0.0, 0.0
    moment.write(numbers)
    decoded = np.asarray(moment.read())
    assert (np.sign(decoded) == np.sign(numbers))[decoded != 0].all()
    assert ((decoded == 0) == (numbers == 0)).all() or signed  # avoids division by zero
    largest = np.maximum(np.abs(numbers).max(axis=-1, keepdims=True), 1e-30)
    roots = [(np.abs(x) / largest) ** (1 / power) for x in (decoded, numbers)]
    error = np.abs(roots[0] - roots[1])
    assert error.max() < 0.5 / max_code + 1e-5


def test_8_bit_adam_matches_adam_with_a_third_of_the_state():
    ids = np.random.default_rng(0).integers(2, 60, (32, 24)).astype("int32")
    ids[:, 1::2] = (ids[:, ::2] * 7) % 61  # every second token follows from the previous one
    losses, states = {}, {}
    for bits in (32, 8):
        keras.utils.set_random_seed(0)
        model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=64, num_layers=1))
        trainer = training.LanguageModelTrainer(model)
        optimizer = training.AdamW(3e-3, global_clipnorm=1.0, beta_2=0.95, state_bits=bits)
        restored = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(optimizer)
        )
        assert restored.get_config() == optimizer.get_config()
        trainer.compile(optimizer, jit_compile=False)
        history = trainer.fit(ids[:, :-1], ids[:, 1:], batch_size=8, epochs=15, verbose=0).history
        losses[bits] = history["loss"]
        states[bits] = sum(v.value.numpy().nbytes for v in optimizer.variables)
    assert losses[8][-1] < 0.75 * losses[8][0]
    np.testing.assert_allclose(losses[8], losses[32], rtol=0.02)
    assert losses[8] != losses[32]
    assert states[8] < 0.35 * states[32]  # for matrices of this size


def test_8_bit_moments_are_decoded_after_gradients():
    optimizer, (matrix,) = training.AdamW(1e-3, state_bits=8), make_variables(("matrix", (64, 128)))
    optimizer.build([matrix])
    step = tf.function(lambda slope: optimizer.apply([tf.exp(slope)], [matrix]))
    graph = step.get_concrete_function(tf.TensorSpec((64, 128))).graph
    (gradient,) = (op for op in graph.get_operations() if op.type == "Exp")
    reads = [op for op in graph.get_operations() if op.type == "Cast"]
    reads = [op for op in reads if op.get_attr("SrcT") in (tf.int8, tf.uint8)]
    assert len(reads) == 2
    for op in reads:
        assert gradient in op.control_inputs or gradient in op.inputs[0].op.control_inputs


def test_resume_with_8_bit_moments_is_bit_exact(tmp_path):
    ids = np.random.default_rng(0).integers(2, 60, (32, 24)).astype("int32")

    def train(folder, epochs):
        keras.utils.set_random_seed(0)
        model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=64, num_layers=1))
        trainer = training.LanguageModelTrainer(model)
        optimizer = training.AdamW(3e-3, state_bits=8)
        trainer.compile(optimizer, jit_compile=False, run_eagerly=True)
        resume = training.Resume(folder, every=2)
        data = tf.data.Dataset.from_tensor_slices((ids[:, :-1], ids[:, 1:])).batch(8)
        data = resume.data(data.repeat(epochs))
        trainer.fit(data, epochs=epochs, steps_per_epoch=4, verbose=0, callbacks=[resume])
        return [np.asarray(v.value) for v in [*model.variables, *trainer.optimizer.variables]]

    uninterrupted = train(tmp_path / "uninterrupted", 2)
    train(tmp_path / "resumed", 1)
    resumed = train(tmp_path / "resumed", 2)
    assert {"int8", "uint8"} <= {values.dtype.name for values in uninterrupted}
    for expected, actual in zip(uninterrupted, resumed, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_invalid_optimizer_arguments_raise_error():
    for arguments in ({"state_bits": 16}, {"state_bits": 8, "amsgrad": True}):
        with pytest.raises(InputError, match="state_bits"):
            training.AdamW(**arguments)
    with pytest.raises(InputError, match="skip_factor"):
        training.AdamW(skip_factor=0.5)
    with pytest.raises(InputError, match="gradient_accumulation_steps"):
        training.AdamW(skip_factor=5.0, gradient_accumulation_steps=2)
