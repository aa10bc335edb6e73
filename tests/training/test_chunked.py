"""Compare the chunked loss with its formula in NumPy and with Keras's losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from keras_llm import models, training
from keras_llm.errors import InputError

N, D, V = 23, 8, 41


def make_arrays(seed=0, bias=True):
    rng = np.random.default_rng(seed)
    shapes = [(N, D), (D, V)] + ([(V,)] if bias else [])
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def targets_and_weights(seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, N), rng.normal(size=N).astype("float32")


def numpy_loss(parts, targets, weights, smoothing=0.0, z_loss=0.0, cap=None):
    """Return loss and gradients from the formula, in float64."""
    states, kernel, *bias = (part.astype("float64") for part in parts)
    raw = states @ kernel + (bias[0] if bias else 0.0)
    logits = raw if cap is None else cap * np.tanh(raw / cap)
    z = np.log(np.exp(logits).sum(-1))
    at = np.arange(N), targets
    losses = z - (1 - smoothing) * logits[at] - smoothing * logits.mean(-1) + z_loss * z**2
    d = np.exp(logits - z[:, None]) * (1 + 2 * z_loss * z[:, None]) - smoothing / V
    d[at] -= 1 - smoothing
    d *= weights[:, None]
    if cap is not None:
        d *= 1 - np.tanh(raw / cap) ** 2
    return losses, [d @ kernel.T, states.T @ d, d.sum(0)][: len(parts)]


@pytest.mark.parametrize(
    "chunk_size, xla",
    [*((size, False) for size in (1, 7, 23, 50, None)), (7, True), (50, True)],
)
@pytest.mark.parametrize(
    "smoothing, z_loss, cap, bias",
    [(0.0, 0.0, None, False), (0.1, 0.01, None, True), (0.2, 0.05, 3.0, False), (0, 0, 2.0, True)],
)
def test_losses_and_gradients_match_formula(
    chunk_size, xla, smoothing, z_loss, cap, bias, monkeypatch
):
    monkeypatch.setenv("KERAS_LLM_XLA", str(int(xla)))
    parts = make_arrays(bias=bias)
    targets, weights = targets_and_weights()
    expected, gradients = numpy_loss(parts, targets, weights, smoothing, z_loss, cap)
    loss_of = training.ChunkedCrossEntropy(smoothing, z_loss, cap, chunk_size)
    variables = [tf.Variable(part) for part in parts]

    @tf.function
    def step():
        states, kernel, *rest = (variable.read_value() for variable in variables)
        with tf.GradientTape() as tape:
            tape.watch([states, kernel, *rest])
            total, losses, right = loss_of.weighted_sum(states, kernel, targets, weights, *rest)
        return total, losses, right, tape.gradient(total, [states, kernel, *rest])

    total, losses, right, results = step()
    assert ("_XlaMustCompile" in str(step.get_concrete_function().graph.as_graph_def())) == xla
    assert float(total) == pytest.approx((expected * weights).sum(), abs=1e-4)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    for actual, reference in zip(results, gradients, strict=True):
        np.testing.assert_allclose(actual, reference, atol=1e-5)
    with tf.GradientTape() as tape:  # a frozen kernel
        states = tf.constant(parts[0])
        tape.watch(states)
        total, *_ = loss_of.weighted_sum(
            states, parts[1], targets, weights, *parts[2:], frozen_kernel=True
        )
    np.testing.assert_allclose(tape.gradient(total, states), gradients[0], atol=1e-5)
    logits = parts[0] @ parts[1] + (parts[2] if bias else 0.0)
    np.testing.assert_array_equal(right, logits.argmax(-1) == targets)
    token_losses = loss_of.token_losses(parts[0], parts[1], targets, *parts[2:])
    np.testing.assert_allclose(token_losses[0], expected, atol=1e-5)


def largest_tensor_size(function):
    """Return the number of elements of a compiled function's largest tensor, loops included."""
    graph = convert_to_constants.convert_variables_to_constants_v2(function).graph
    graphs = [graph.as_graph_def(add_shapes=True)]
    nodes = [*graphs[0].node, *(n for f in graphs[0].library.function for n in f.node_def)]
    return max(
        np.prod([d.size for d in shape.dim] or [1])
        for node in nodes
        for shape in node.attr["_output_shapes"].list.shape
        if not shape.unknown_rank
    )


def test_no_tensor_has_logits_size(monkeypatch):
    monkeypatch.setenv("KERAS_LLM_XLA", "0")  # XLA's tensors are not visible in the graph
    rows, width, vocabulary, chunk = 512, 4, 1024, 16

    def step(states, kernel, chunk_size):
        targets, weights = tf.zeros((rows,), "int32"), tf.ones((rows,))
        with tf.GradientTape() as tape:
            tape.watch([states, kernel])
            loss_of = training.ChunkedCrossEntropy(chunk_size=chunk_size)
            total, *_ = loss_of.weighted_sum(states, kernel, targets, weights)
        return tape.gradient(total, [states, kernel])

    specs = [tf.TensorSpec((rows, width)), tf.TensorSpec((width, vocabulary))]

    def largest(chunk_size):
        function = tf.function(lambda s, k: step(s, k, chunk_size))
        return largest_tensor_size(function.get_concrete_function(*specs))

    assert largest(rows) >= rows * vocabulary  # the full logits tensor is detected
    assert largest(chunk) <= 2 * chunk * vocabulary


def corpus(rows=12, length=10, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(2, V, (2, rows, length)).astype("int32")
    y[:, 7:] = 0
    return x, y


def train(use_trainer, **changes):
    keras.utils.set_random_seed(3)
    depth = 2 if "num_experts" in changes else 1  # the losses of all layers are summed
    shape = {"vocabulary_size": V, "num_layers": depth, "initializer_range": 0.3, **changes}
    model = models.causal_lm(models.preset("llama-tiny", **shape))
    fitted = training.LanguageModelTrainer(model, ignore_id=0) if use_trainer else model
    arguments = {"optimizer": keras.optimizers.SGD(0.02), "jit_compile": False}
    if not use_trainer:
        arguments["run_eagerly"] = True  # the reference needs no tracing
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
        arguments |= {"loss": loss, "metrics": [training.TokenAccuracy(0)]}
    fitted.compile(**arguments)
    x, y = corpus()
    history = fitted.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    return history, fitted.evaluate(x, y, verbose=0, return_dict=True), model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"final_soft_cap": 5.0, "logit_scale": 0.5},
        {"num_experts": 4, "experts_per_token": 2},
    ],
    ids=["tied", "untied", "capped", "experts"],
)
def test_fit_matches_training_with_logits(changes):
    history, measures, model = train(True, **changes)
    plain_history, plain_measures, plain_model = train(False, **changes)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(history[name], plain_history[name], atol=1e-5)
        assert measures[name] == pytest.approx(plain_measures[name], abs=1e-5)
    for actual, reference in zip(model.weights, plain_model.weights, strict=True):
        np.testing.assert_allclose(actual, reference, atol=1e-5, err_msg=actual.path)


def test_train_all_token_heads():
    x, y = corpus()
    rows = {"seq2seq": ("t5-tiny", models.seq2seq), "masked": ("distilbert-tiny", models.masked_lm)}
    for name, (preset, build) in rows.items():
        depth = {"num_decoder_layers": 1} if name == "seq2seq" else {}
        model = build(models.preset(preset, vocabulary_size=V, num_layers=1, **depth))
        if name == "seq2seq":
            inputs, targets = [x, x], y
        else:
            inputs, targets = [x, x > 0, np.tile([[1, 4, 6]], (len(x), 1))], y[:, :3]
        weights = np.random.default_rng(0).random(targets.shape).astype("float32")
        trainer = training.LanguageModelTrainer(model, ignore_id=0)
        trainer.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
        measures = trainer.evaluate(
            inputs, targets, batch_size=12, sample_weight=weights, verbose=0
        )
        logits = np.asarray(model(inputs), "float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        weights = weights * (targets != 0)
        assert measures[0] == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-4)
        before = model.get_weights()
        trainer.fit(inputs, targets, verbose=0)
        changed = [np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)]
        assert np.mean(changed) > 0.9, name


def test_half_precision_loss_matches_logits():
    shape = {"vocabulary_size": V, "num_layers": 1, "initializer_range": 0.3}
    model = models.causal_lm(models.preset("llama-tiny", **shape), dtype="mixed_bfloat16")
    trainer = training.LanguageModelTrainer(model)
    trainer.compile(keras.optimizers.AdamW(1e-3), jit_compile=False)
    x, y = corpus()
    logits = np.asarray(model(x), "float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, y[..., None], -1).mean()
    assert trainer.evaluate(x, y, verbose=0)[0] == pytest.approx(expected, rel=1e-2)
    history = trainer.fit(x, y, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]


def test_half_precision_training_adapters_and_saving(tmp_path):
    policy = "mixed_bfloat16"
    x, y = corpus()
    losses = []
    for dtype in ("float32", policy):
        keras.utils.set_random_seed(3)
        keras.config.set_dtype_policy(dtype)
        try:
            config = models.preset("llama-tiny", vocabulary_size=V, num_layers=1)
            model = models.causal_lm(config)
        finally:
            keras.config.set_dtype_policy("float32")
        trainer = training.LanguageModelTrainer(model, ignore_id=0)
        trainer.compile(training.AdamW(1e-2), jit_compile=False)
        history = trainer.fit(x, y, batch_size=4, epochs=6, shuffle=False, verbose=0).history[
            "loss"
        ]
        assert history[-1] < 0.8 * history[0]
        losses.append(history)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert {w.dtype for w in model.weights} == {"float32"}
    training.add_lora(model, rank=2)
    trainer.compile(training.AdamW(1e-2), run_eagerly=True)
    adapter_losses = trainer.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history[
        "loss"
    ]
    assert adapter_losses[1] < adapter_losses[0]
    merged = training.merge_lora(model)
    merged.save_weights(tmp_path / "model.weights.h5")
    loaded = models.restore(models.describe(merged))
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded(x), merged(x))
    assert np.abs(np.asarray(merged(x)) - model(x)).max() < 0.05 * np.abs(model(x)).max()


def test_optimizer_too_precise_for_bfloat16_weights_raises_error():
    """With Adam's default constants, updates are lost to rounding and the loss never changes."""
    config = models.preset("llama-tiny", vocabulary_size=V, num_layers=1)
    x, y = corpus()
    for make in (keras.optimizers.AdamW, training.AdamW):
        trainer = training.LanguageModelTrainer(models.causal_lm(config, dtype="bfloat16"))
        trainer.compile(make(1e-2), jit_compile=False)
        with pytest.raises(InputError, match=r"AdamW.*bfloat16.*mixed_bfloat16"):
            trainer.fit(x, y, verbose=0)
    trainer.compile(training.AdamW(1e-2, beta_2=0.95), jit_compile=False)
    history = trainer.fit(x, y, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_invalid_arguments_raise_error():
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=V, num_layers=1))
    for changes, message in (
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"chunk_size": 0}, "chunk_size"),
    ):
        with pytest.raises(InputError, match=message):
            training.LanguageModelTrainer(model, **changes)
    with pytest.raises(InputError, match="causal_lm"):
        training.LanguageModelTrainer(models.encoder(models.preset("distilbert-tiny")))
    trainer = training.LanguageModelTrainer(model)
    trainer.compile("sgd", jit_compile=False)
    x, y = corpus()
    for token in (V, -1):
        invalid = x.copy()
        invalid[3, 2] = token
        with pytest.raises(InputError, match=f"0 .. {V - 1}.*{token}"):
            trainer.fit(invalid, y, verbose=0)
