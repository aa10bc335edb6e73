"""Compare layer components with NumPy references written from the formulas, and with keras_nlp."""

import math

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import layers
from keras_llm.layers.activations import activate

RNG = np.random.default_rng(11)


def random(*shape):
    return RNG.normal(size=shape).astype("float32")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


# Feed forward


only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="optimization of the TensorFlow backend"
)


def has_padding(layer, inputs):
    run = tf.function(lambda x: layer(x, training=True)).get_concrete_function(inputs)
    return any(op.type in ("Pad", "PadV2") for op in run.graph.get_operations())


@only_tensorflow
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize("gated, use_bias", [(False, True), (True, False), (True, True)])
def test_padded_features_do_not_change_training(activation, gated, use_bias):
    layer = layers.FeedForward(
        512, activation, gated, use_bias, bias_initializer=keras.initializers.RandomNormal(seed=1)
    )
    inputs = tf.constant(random(2, 5, 24))
    layer(inputs)
    assert has_padding(layer, inputs)
    results = []
    for training in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(outputs**2)
        sources = [inputs, *(variable.value for variable in layer.trainable_variables)]
        results.append([outputs, *tape.gradient(loss, sources)])
    for padded, plain in zip(*results, strict=True):
        np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-4)


@only_tensorflow
def test_features_are_not_padded_where_results_would_change():
    inputs = random(2, 5, 24)
    for activation in ("softmax", "sigmoid", lambda x: x + 1):
        assert not has_padding(layers.FeedForward(512, activation), inputs)
    assert not has_padding(layers.FeedForward(500), inputs)
    assert not has_padding(layers.FeedForward(512, dtype="mixed_bfloat16"), inputs)
    assert not has_padding(layers.FeedForward(512), random(2, 5, 264))
    for change in (lambda dense: dense.enable_lora(2), lambda dense: dense.quantize("int8")):
        layer = layers.FeedForward(512)
        layer(inputs)
        change(layer.down)
        assert not has_padding(layer, inputs)


def gradient_and_stored_tensors(function, x, variables=(), size=None):
    """Return a function's outputs and gradients, and how many tensors its gradient stores.

    The count excludes the input; with `size`, only of those with `size` elements.
    """

    @tf.function
    def run(x):
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        count = len(graph.get_operations())
        gradients = tape.gradient(y, [x, *variables])
        forward = set(graph.get_operations()[:count])
        backward = graph.get_operations()[count:]
        used = {t.name: t for op in backward for t in op.inputs if t.op in forward and t.shape.rank}
        sizes = [t.shape.num_elements() for name, t in used.items() if name != x.name]
        counts.append(len(sizes) if size is None else sizes.count(size))
        return y, *gradients

    counts = []
    return [np.asarray(part) for part in run(x)], counts[-1]


@only_tensorflow
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("activation", [layers.gelu_tanh, keras.activations.gelu])
def test_gelu_training_stores_only_input(activation, xla, monkeypatch):
    monkeypatch.setenv("KERAS_LLM_XLA", str(int(xla)))
    x = tf.constant(np.linspace(-9, 9, 181), "float64")
    (expected, gradient), count = gradient_and_stored_tensors(
        lambda x: activate(activation, x, False), x
    )
    assert count >= 3
    optimized, count = gradient_and_stored_tensors(lambda x: activate(activation, x, True), x)
    assert count == 0
    np.testing.assert_allclose(optimized[0], expected, atol=1e-12)
    np.testing.assert_allclose(optimized[1], gradient, atol=1e-7)
    inputs = tf.constant(random(2, 3, 8))
    for gated in (True, False):
        layer = layers.MixtureOfExperts(2, 1, 16, activation, gated=gated)
        layer(inputs)
        run = tf.function(lambda x, layer=layer: layer(x, training=True))
        graph = run.get_concrete_function(inputs).graph
        assert any(op.type == "IdentityN" for op in graph.get_operations())


@only_tensorflow
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("gated, use_bias, width", [(False, True, 40), (True, False, 512)])
def test_feed_forward_training_stores_only_activation_inputs(
    activation, gated, use_bias, width, xla, monkeypatch
):
    monkeypatch.setenv("KERAS_LLM_XLA", str(int(xla)))
    layer = layers.FeedForward(width, activation, gated, use_bias)
    x = tf.constant(random(2, 3, 24))
    layer(x)
    sources = [v.value for v in layer.trainable_variables]
    extra = 16 if width == 512 else 0

    def run(training, size):
        return gradient_and_stored_tensors(lambda x: layer(x, training=training), x, sources, size)

    expected, count = run(False, 6 * width)
    assert count > 1 + gated
    optimized, count = run(True, 6 * (width + extra))
    assert count == 1 + gated
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    eager = [y, *tape.gradient(y, [x, *sources])]
    for parts in zip(expected, optimized, eager, strict=True):
        for part in parts[1:]:
            np.testing.assert_allclose(part, parts[0], rtol=1e-4, atol=1e-5)


# Relative positions


def t5_bucket(offset_to_key, buckets, max_distance, bidirectional):
    """Return the bucket of one query-key pair (Raffel et al., 2020)."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if offset_to_key > 0 else 0
        distance = abs(offset_to_key)
    else:
        distance = max(-offset_to_key, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    log_bucket = exact + int(
        math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    )
    return offset + min(log_bucket, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    "buckets, max_distance", [(32, 128), (8, 20), (64, 1000), (32, 32), (32, 17)]
)
def test_relative_bias_matches_formula(bidirectional, buckets, max_distance):
    layer = layers.RelativePositionBias(buckets, max_distance, bidirectional)
    keys = np.arange(0, 1400, 3)
    scores = random(1, 2, 2, len(keys))
    queries = np.array([0, 700])
    biased = np.asarray(layer(scores, queries, keys))
    table = np.asarray(layer.weights[0])
    for i, query in enumerate(queries):
        expected = [
            table[t5_bucket(key - query, buckets, max_distance, bidirectional)] for key in keys
        ]
        np.testing.assert_allclose(
            biased[0, :, i] - scores[0, :, i], np.array(expected).T, atol=1e-5
        )


def test_relative_bias_per_row_and_default_positions():
    layer = layers.RelativePositionBias(8, 20)
    scores = random(2, 3, 2, 6)
    last = layer(scores)
    np.testing.assert_allclose(last, layer(scores, np.array([4, 5]), np.arange(6)), atol=1e-6)
    rows = np.array([[4, 5], [0, 3]])
    by_row = np.asarray(layer(scores, rows, np.arange(6)))
    np.testing.assert_allclose(by_row[:1], last[:1], atol=1e-6)
    np.testing.assert_allclose(by_row[1:], layer(scores[1:], rows[1], np.arange(6)), atol=1e-6)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("denominator_dim", [None, 16])
def test_rope_types_match_keras_nlp(rope_type, denominator_dim):
    arguments = {
        "max_wavelength": 500,
        "scaling_factor": 4.0,
        "rope_type": rope_type,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": denominator_dim is None,
    }
    if rope_type != "yarn":
        arguments["denominator_dim"] = denominator_dim
    x = random(2, 6, 3, 8)
    np.testing.assert_allclose(
        layers.RotaryEmbedding(**arguments)(x, start_index=90),
        keras_nlp.layers.RotaryEmbedding(**arguments)(x, start_index=90),
        atol=1e-4,
    )


# Attention


def make_attention(**options):
    layer = layers.MultiHeadAttention(2, 4, **options)
    layer.build((None, None, 8))
    layer.set_weights([0.5 * RNG.normal(size=w.shape) for w in layer.weights])
    return layer


def test_return_attention_scores():
    layer = make_attention(attention_scale=0.3)
    x = random(2, 5, 8)
    mask = np.tril(np.ones((5, 5), bool))[None]
    output, scores = layer(x, attention_mask=mask, return_attention_scores=True)
    np.testing.assert_array_equal(output, layer(x, attention_mask=mask))
    w = {v.path.split("/", 1)[1]: np.asarray(v) for v in layer.weights}
    q, k = (x @ w[f"{n}/kernel"] + w[f"{n}/bias"] for n in ("query", "key"))
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        raw = 0.3 * q[..., part] @ k[..., part].swapaxes(1, 2)
        expected = softmax(np.where(mask, raw, -np.inf))
        np.testing.assert_allclose(np.asarray(scores)[:, head], expected, atol=1e-5)


def test_learned_sinks_are_part_of_softmax():
    layer = make_attention(learned_sinks=True)
    x = random(1, 4, 8)
    _, scores = layer(x, return_attention_scores=True)
    plain = layers.MultiHeadAttention(2, 4)
    plain.build((None, None, 8))
    plain.set_weights([w for w in layer.get_weights() if w.shape != (2,)])
    sinks = np.asarray(layer.sinks)
    q, k = (
        np.asarray(plain._heads(x, p, 2)) for p in (plain.query_projection, plain.key_projection)
    )
    raw = np.einsum("btnh,bsnh->bnts", q, k) / 2
    columns = np.broadcast_to(sinks[None, :, None, None], (1, 2, 4, 1))
    expected = softmax(np.concatenate([raw, columns], -1))[..., :-1]
    np.testing.assert_allclose(np.asarray(scores), expected, atol=1e-5)
    assert np.all(np.asarray(scores).sum(-1) < 1)


def test_attention_bias_is_added_to_scores():
    layer = make_attention()
    x, bias = random(2, 5, 8), random(1, 2, 5, 5)
    _, plain = layer(x, return_attention_scores=True)
    _, biased = layer(x, attention_bias=bias, return_attention_scores=True)
    expected = np.asarray(plain) * np.exp(bias)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(biased, expected, atol=1e-5)


def test_sink_tokens_stay_visible_outside_window():
    layer = make_attention(sliding_window=2, num_sink_tokens=1)
    _, scores = layer(random(1, 6, 8), use_causal_mask=True, return_attention_scores=True)
    i, j = np.arange(6)[:, None], np.arange(6)
    visible = (j <= i) & ((i - j < 2) | (j < 1))
    np.testing.assert_array_equal(np.asarray(scores)[0, 0] > 0, visible)


@settings(max_examples=25)
@given(
    window=st.integers(1, 6),
    num_sink_tokens=st.integers(0, 3),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    real=st.lists(st.integers(0, 5), min_size=10, max_size=10),
    slack=st.integers(0, 3),
)
def test_ring_cache_matches_full_attention(window, num_sink_tokens, chunks, real, slack):
    """Feed chunks of any length; rows may end each chunk early and continue in the next."""
    layer = make_attention(
        sliding_window=window, num_sink_tokens=num_sink_tokens, position=layers.Rotary()
    )
    total = sum(chunks)
    x = random(2, total, 8)
    full = np.asarray(layer(x, use_causal_mask=True))
    cache = layers.empty_cache(2, window + num_sink_tokens + slack, 2, 4)
    done = np.zeros(2, int)
    for step, length in enumerate(chunks):
        counts = np.minimum([real[2 * step], real[2 * step + 1]], length)
        if length == 1:
            counts = np.ones(2, int)
        positions = done[:, None] + np.arange(length)
        chunk = np.take_along_axis(x, np.minimum(positions, total - 1)[..., None], axis=1)
        output, cache = layer(
            chunk,
            positions=positions.astype("int32"),
            cache=cache,
            cache_update_index=done.astype("int32"),
            use_causal_mask=True,
            padding_mask=None if length == 1 else np.arange(length) < counts[:, None],
        )
        for row in range(2):
            span = slice(done[row], done[row] + counts[row])
            np.testing.assert_allclose(output[row, : counts[row]], full[row, span], atol=1e-5)
        done += counts


def test_ring_cache_with_attention_mask_raises_error():
    layer = make_attention(sliding_window=2)
    with pytest.raises(ValueError, match="attention_mask"):
        layer(
            random(1, 1, 8),
            attention_mask=np.ones((1, 1, 2), bool),
            cache=layers.empty_cache(1, 2, 2, 4),
            cache_update_index=0,
            use_causal_mask=True,
        )


# Blocks


def with_random_weights(block, *shapes):
    block.build(*shapes)
    for weight in block.trainable_weights:
        weight.assign(RNG.normal(size=weight.shape) * 0.3)
    return block


def test_sandwich_norm_matches_formula():
    block = with_random_weights(
        layers.TransformerEncoder(12, 2, normalize_first=True, sandwich_norm=True), (None, 5, 8)
    )
    x = random(2, 5, 8)
    h = x + block.self_attention_post_norm(block.self_attention(block.self_attention_norm(x)))
    h = h + block.feed_forward_post_norm(block.feed_forward(block.feed_forward_norm(h)))
    np.testing.assert_allclose(block(x), h, atol=1e-6)


def test_parallel_residual_matches_formula():
    block = with_random_weights(
        layers.TransformerEncoder(12, 2, normalize_first=True, parallel_residual=True), (None, 5, 8)
    )
    x = random(2, 5, 8)
    expected = (
        x
        + block.self_attention(block.self_attention_norm(x))
        + block.feed_forward(block.feed_forward_norm(x))
    )
    np.testing.assert_allclose(block(x), expected, atol=1e-6)


def test_decoder_returns_attention_scores():
    block = layers.TransformerDecoder(12, 2)
    x, encoder_outputs = random(2, 5, 8), random(2, 3, 8)
    output, self_scores, cross_scores = block(x, encoder_outputs, return_attention_scores=True)
    np.testing.assert_array_equal(output, block(x, encoder_outputs))
    assert self_scores.shape == (2, 2, 5, 5) and cross_scores.shape == (2, 2, 5, 3)
    assert np.all(np.triu(np.asarray(self_scores), 1) == 0)
    np.testing.assert_allclose(np.asarray(cross_scores).sum(-1), 1, rtol=1e-5)


# Experts


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("normalize_weights", [True, False])
def test_experts_match_weighted_sum_of_top_k(gated, normalize_weights):
    layer = with_random_weights(
        layers.MixtureOfExperts(
            5,
            2,
            6,
            gated=gated,
            normalize_weights=normalize_weights,
            num_shared_experts=1,
            kernel_initializer="random_normal",
        ),
        (None, None, 8),
    )
    x = random(2, 3, 8)
    up, down = np.asarray(layer.up), np.asarray(layer.down)
    output = np.asarray(layer(x))
    for token, result in zip(x.reshape(-1, 8), output.reshape(-1, 8), strict=True):
        p = softmax(token @ np.asarray(layer.router.kernel))
        best = np.argsort(-p)[:2]
        weights = p[best] / p[best].sum() if normalize_weights else p[best]
        expected = np.asarray(layer.shared(token[None, None]))[0, 0]
        for expert, weight in zip(best, weights, strict=True):
            hidden = token @ up[expert]
            hidden = (
                silu(token @ np.asarray(layer.gate)[expert]) * hidden if gated else silu(hidden)
            )
            expected = expected + weight * hidden @ down[expert]
        np.testing.assert_allclose(result, expected, atol=1e-4)


def test_expert_losses_are_added_only_in_training():
    layer = with_random_weights(
        layers.MixtureOfExperts(4, 2, 6, load_balance_loss=1.0, router_z_loss=0.0), (None, None, 8)
    )
    x = random(2, 50, 8)
    layer(x)
    assert layer.losses == []
    layer(x, training=True)
    logits = x.reshape(-1, 8) @ np.asarray(layer.router.kernel)
    p = softmax(logits)
    chosen = np.argsort(-p, -1)[:, :2]
    share = np.bincount(chosen.ravel(), minlength=4) / chosen.size
    np.testing.assert_allclose(layer.losses[0], 4 * (share * p.mean(0)).sum(), rtol=1e-5)
    layer.load_balance_loss, layer.router_z_loss = 0.0, 1.0
    layer(x, training=True)
    z = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(layer.losses[-1], (z**2).mean(), rtol=1e-5)


def test_load_balance_loss_of_balanced_experts_is_one():
    layer = layers.MixtureOfExperts(4, 2, 6, load_balance_loss=1.0, router_z_loss=0.0)
    layer.build((None, None, 8))
    layer.router.kernel.assign(np.zeros((8, 4)))  # all experts are equally likely
    layer(random(2, 5, 8), training=True)
    np.testing.assert_allclose(layer.losses[0], 1.0, rtol=1e-5)


# keras_nlp


def test_masked_lm_head_matches_keras_nlp():
    x, positions = random(2, 5, 8), np.array([[0, 3], [4, 4]])
    for tied in (True, False):
        embedding = keras.layers.ReversibleEmbedding(11, 8)
        embedding.build((None, None))
        arguments = {"token_embedding": embedding} if tied else {"vocabulary_size": 11}
        ours = layers.MaskedLMHead(**arguments, intermediate_activation="gelu")
        theirs = keras_nlp.layers.MaskedLMHead(**arguments, intermediate_activation="gelu")
        ours(x, positions), theirs(x, positions)
        names = {"dense/": "intermediate_dense/", "norm/": "intermediate_layer_norm/"}
        their_weights = {w.path.split("/", 1)[1]: w for w in theirs.weights}
        for weight in ours.weights:
            if "reversible" in weight.path:
                continue
            path = weight.path.split("/", 1)[1]
            for our_name, their_name in names.items():
                path = path.replace(our_name, their_name)
            path = {"bias": "output_bias", "kernel": "output_kernel"}.get(path, path)
            weight.assign(random(*weight.shape))
            their_weights[path].assign(weight)
        np.testing.assert_allclose(ours(x, positions), theirs(x, positions), atol=1e-4)
