"""Compare attention and blocks with NumPy references written from formulas, Keras and keras_nlp."""

import itertools

import keras
import keras_nlp
import numpy as np
import pytest
from keras import ops

import keras_llm
from keras_llm import layers
from keras_llm.layers import flash
from keras_llm.layers.attention import attention

RNG = np.random.default_rng(7)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_attention(layer, query, value, mask=None, cap=None):
    """Compute attention one head at a time (Vaswani et al., 2017).

    Query head i uses key-value head i // (N / K).
    """
    weights = {w.path.split("/", 1)[1]: np.asarray(w) for w in layer.weights}

    def project(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    size, group = layer.head_dim, layer.num_heads // layer.num_key_value_heads
    q, k, v = project(query, "query"), project(value, "key"), project(value, "value")
    heads = []
    for i in range(layer.num_heads):
        j = i // group
        qi = q[..., i * size : (i + 1) * size]
        kj, vj = (x[..., j * size : (j + 1) * size] for x in (k, v))
        scores = qi @ kj.swapaxes(-1, -2) / np.sqrt(size)
        if cap:
            scores = cap * np.tanh(scores / cap)
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        heads.append(softmax(scores) @ vj)
    return project(np.concatenate(heads, -1), "output")


def random(*shape):
    return RNG.normal(size=shape).astype("float32")


def formula(query, key, value, mask=None, bias=None, scale=None, logit_soft_cap=None, sinks=None):
    """Outputs and probabilities of `attention`, one query of one head at a time."""
    (rows, length, heads, size), (_, groups, slots, _) = query.shape, key.shape
    outputs = np.zeros(query.shape)
    probabilities = np.zeros((rows, heads, length, slots))
    for b, n, t in itertools.product(range(rows), range(heads), range(length)):
        j = n // (heads // groups)
        scores = key[b, j] @ query[b, t, n] * (size**-0.5 if scale is None else scale)
        if logit_soft_cap:
            scores = logit_soft_cap * np.tanh(scores / logit_soft_cap)
        if bias is not None:
            scores = scores + np.broadcast_to(bias, probabilities.shape)[b, n, t]
        if mask is not None:
            scores = np.where(np.broadcast_to(mask, probabilities.shape)[b, n, t], scores, -np.inf)
        further = [] if sinks is None else [sinks[n]]
        probabilities[b, n, t] = softmax(np.concatenate([scores, further]))[:slots]
        outputs[b, t, n] = probabilities[b, n, t] @ value[b, j]
    return outputs, probabilities


def options():
    """Combinations of the arguments of `attention` for 2 rows, 4 heads, 5 queries and 6 keys."""
    masks = [RNG.random(shape) > 0.3 for shape in [(2, 1, 5, 6), (1, 1, 1, 6), (2, 4, 5, 6)]]
    for mask in masks:
        mask[..., 0] = True
    choices = {
        "mask": [None, *masks],
        "bias": [None, random(1, 4, 5, 6), random(2, 1, 1, 6)],
        "scale": [None, 0.7],
        "logit_soft_cap": [None, 2.0],
        "sinks": [None, random(4)],
    }
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_attention_function_is_the_formula_and_that_of_keras(num_key_value_heads):
    query = random(2, 5, 4, 8)
    key, value = random(2, 2, num_key_value_heads, 6, 8)
    for arguments in options():
        output, found = attention(query, key, value, **arguments, return_probabilities=True)
        expected, probabilities = formula(query, key, value, **arguments)
        np.testing.assert_allclose(output, expected, atol=1e-5)
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        np.testing.assert_array_equal(attention(query, key, value, **arguments), output)
        cap, sinks = arguments.pop("logit_soft_cap"), arguments.pop("sinks")
        if cap is None and sinks is None and num_key_value_heads > 1:  # one fails on TensorFlow
            keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
            theirs = ops.dot_product_attention(query, keys, values, **arguments)
            np.testing.assert_allclose(output, theirs, atol=1e-5)


def test_dropout_is_applied_to_the_probabilities():
    query, key, value = random(2, 5, 4, 8), random(2, 2, 6, 8), random(2, 2, 6, 8)
    ours, doubled = (
        attention(query, key, value, dropout=dropout) for dropout in (None, lambda p: 2 * p)
    )
    np.testing.assert_allclose(doubled, 2 * np.asarray(ours), rtol=1e-5)
    layer = layers.MultiHeadAttention(2, 4, dropout=0.5)
    x = random(2, 5, 8)
    np.testing.assert_array_equal(layer(x), layer(x, training=False))
    assert not np.allclose(layer(x), layer(x, training=True))


def test_flash_attention_of_keras_gives_the_same_where_it_is_used(monkeypatch):
    """As on a GPU: without options that `ops.dot_product_attention` does not have."""
    calls = []

    def counted(*args, **arguments):
        calls.append(arguments)
        return of_keras(*args, **arguments)

    of_keras = ops.dot_product_attention
    query, key, value = random(2, 5, 4, 8), random(2, 2, 6, 8), random(2, 2, 6, 8)
    expected = [(row, np.asarray(attention(query, key, value, **row))) for row in options()]
    monkeypatch.setattr(flash, "is_available", lambda: True)
    monkeypatch.setattr(ops, "dot_product_attention", counted)
    for arguments, output in expected:
        np.testing.assert_allclose(attention(query, key, value, **arguments), output, atol=1e-5)
    assert len(calls) == 8  # 4 masks, 2 scales
    attention(query, key, value, return_probabilities=True)
    attention(query, key, value, dropout=lambda probabilities: probabilities)
    assert len(calls) == 8


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_attention_matches_formula(num_key_value_heads, cap):
    layer = layers.MultiHeadAttention(
        4, 6, num_key_value_heads=num_key_value_heads, logit_soft_cap=cap, bias_initializer="normal"
    )
    query, value = random(2, 5, 8), random(2, 3, 8)
    mask = RNG.random((2, 5, 3)) > 0.4
    mask[..., 0] = True
    output = layer(query, value, attention_mask=mask)
    np.testing.assert_allclose(output, numpy_attention(layer, query, value, mask, cap), atol=2e-5)


def test_sliding_window_size():
    windowed = layers.MultiHeadAttention(2, 4, sliding_window=3)
    x = random(1, 8, 8)
    windowed(x)
    near = np.abs(np.subtract.outer(np.arange(8), np.arange(8))) < 3
    np.testing.assert_allclose(windowed(x), numpy_attention(windowed, x, x, near), atol=2e-5)


def test_attention_matches_keras():
    ours = layers.MultiHeadAttention(4, 6, bias_initializer="normal")
    theirs = keras.layers.MultiHeadAttention(4, 6)
    x = random(2, 5, 8)
    ours(x), theirs(x, x)
    w = ours.get_weights()
    qkv = [v.reshape(*v.shape[:-1], 4, 6) for v in w[:6]]
    theirs.set_weights([*qkv, w[6].reshape(4, 6, 8), w[7]])
    causal = np.tril(np.ones((5, 5), bool))[None]
    np.testing.assert_allclose(
        ours(x, attention_mask=causal), theirs(x, x, attention_mask=causal), atol=1e-5
    )


@pytest.mark.parametrize("normalize_first", [False, True])
def test_encoder_matches_keras_nlp(normalize_first, copy_block_weights):
    arguments = {"intermediate_dim": 12, "num_heads": 4, "normalize_first": normalize_first}
    ours = layers.TransformerEncoder(**arguments)
    theirs = keras_nlp.layers.TransformerEncoder(**arguments)
    x, mask = random(2, 5, 8), np.arange(5) < np.array([[5], [3]])
    ours(x), theirs(x)
    copy_block_weights(ours, theirs)
    our_output, our_scores = ours(x, padding_mask=mask, return_attention_scores=True)
    output, scores = theirs(x, padding_mask=mask, return_attention_scores=True)
    np.testing.assert_allclose(np.asarray(our_output)[mask], np.asarray(output)[mask], atol=1e-5)
    rows = np.broadcast_to(mask[:, None, :, None], scores.shape)
    np.testing.assert_allclose(np.asarray(our_scores)[rows], np.asarray(scores)[rows], atol=1e-5)


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_decoder_matches_keras_nlp(normalize_first, cross, copy_block_weights):
    arguments = {"intermediate_dim": 12, "num_heads": 4, "normalize_first": normalize_first}
    ours = layers.TransformerDecoder(**arguments)
    theirs = keras_nlp.layers.TransformerDecoder(**arguments)
    x = random(2, 5, 8)
    inputs, masks = [x], {}
    if cross:
        inputs.append(random(2, 3, 8))
        masks["encoder_padding_mask"] = np.arange(3) < np.array([[3], [2]])
    ours(*inputs), theirs(*inputs)
    copy_block_weights(ours, theirs)
    np.testing.assert_allclose(ours(*inputs, **masks), theirs(*inputs, **masks), atol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
def test_decoder_accepts_stacked_caches_of_keras_nlp(cross, copy_block_weights):
    """Run the same calls step by step and compare outputs and caches."""
    ours, theirs = (
        module.layers.TransformerDecoder(12, 4, normalize_first=True)
        for module in (keras_llm, keras_nlp)
    )
    x, encoder_outputs = random(2, 4, 8), random(2, 3, 8)
    inputs = [x, encoder_outputs] if cross else [x]
    ours(*inputs), theirs(*inputs)
    copy_block_weights(ours, theirs)
    states = [{"self_attention_cache": ops.zeros((2, 2, 5, 4, 2))} for _ in range(2)]
    for state in states if cross else ():
        state["cross_attention_cache"] = ops.zeros((2, 2, 3, 4, 2))
    for t in range(4):
        outputs = []
        for block, state in zip((ours, theirs), states, strict=True):
            extra = {"cross_attention_cache_update_index": 0 if t == 0 else None} if cross else {}
            output, *caches = block(
                x[:, t : t + 1],
                *inputs[1:],
                **state,
                self_attention_cache_update_index=t,
                **extra,
            )
            state.update(zip(state, caches, strict=True))
            outputs.append(output)
        np.testing.assert_allclose(*outputs, atol=1e-5)
        for name in states[0]:
            np.testing.assert_allclose(states[0][name], states[1][name], atol=1e-5)


def test_decoder_with_self_and_cross_cache_matches_full_forward():
    block = layers.TransformerDecoder(12, 4, num_key_value_heads=2)
    x, encoder_outputs = random(2, 5, 8), random(2, 3, 8)
    full = np.asarray(block(x, encoder_outputs))
    cross_cache = block.cross_attention.project_keys_and_values(encoder_outputs)
    cache = layers.empty_cache(2, 6, 2, 2)
    for t in range(5):
        output, cache, cross_cache = block(
            x[:, t : t + 1],
            self_attention_cache=cache,
            self_attention_cache_update_index=t,
            cross_attention_cache=cross_cache,
        )
        np.testing.assert_allclose(output[:, 0], full[:, t], atol=1e-5)


def test_decoder_built_without_cross_attention_raises_error():
    block = layers.TransformerDecoder(12, 4)
    x = random(1, 3, 8)
    block(x)
    with pytest.raises(ValueError, match="encoder_sequence"):
        block(x, x)


def test_update_cache_per_row_and_per_chunk():
    cache = ops.zeros((2, 3, 5, 4))
    new = random(2, 3, 1, 4)
    rows = np.asarray(layers.update_cache(cache, new, np.array([4, 1])))
    np.testing.assert_array_equal(rows[0, :, 4], new[0, :, 0])
    np.testing.assert_array_equal(rows[1, :, 1], new[1, :, 0])
    assert np.count_nonzero(rows) == new.size
    chunk = random(2, 3, 2, 4)
    np.testing.assert_array_equal(np.asarray(layers.update_cache(cache, chunk, 3))[:, :, 3:], chunk)
    chunks = np.asarray(layers.update_cache(cache, chunk, np.array([0, 2])))
    np.testing.assert_array_equal(chunks[0, :, :2], chunk[0])
    np.testing.assert_array_equal(chunks[1, :, 2:4], chunk[1])
    assert np.count_nonzero(chunks) == chunk.size


def test_masks_match_definitions():
    q, k = np.arange(3), np.arange(4)
    np.testing.assert_array_equal(layers.causal_mask(q, k)[0], k[None] <= q[:, None])
    rows = np.array([[0, 2], [3, 1]])
    np.testing.assert_array_equal(layers.causal_mask(rows, k), k <= rows[..., None])
    np.testing.assert_array_equal(layers.band_mask(q, k, 2)[0], np.abs(k[None] - q[:, None]) < 2)
    real = np.array([[True, False]])
    np.testing.assert_array_equal(layers.padding_mask(real), real[:, None])
