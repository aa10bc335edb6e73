"""Test every exported layer with one conformance test."""

import inspect

import keras
import numpy as np
import pytest
from keras.src.testing import TestCase

from keras_llm import layers

VARIANTS = {
    "grouped": {"num_key_value_heads": 2, "position": layers.Rotary(base=500.0)},
    "normed": {"qk_norm": True, "logit_soft_cap": 5.0, "use_bias": False},
    "biased": {"num_key_value_heads": 2, "position": layers.Alibi(max_bias=4.0)},
    "scaled": {"position": layers.Rotary(scaling=layers.Llama3Scaling(8.0, 1.0, 4.0, 64))},
    "windowed": {"sliding_window": 2, "dropout": 0.1},
    "sinks": {"sliding_window": 2, "num_sink_tokens": 1, "learned_sinks": True},
    "bucketed": {"position": layers.RelativeBias(8, 20), "attention_scale": 1.0},
}
BLOCKS = {
    "parallel": {"normalize_first": True, "parallel_residual": True},
    "sandwich": {"normalize_first": True, "sandwich_norm": True, "activation": "gelu_tanh"},
    "experts": {"num_experts": 3, "experts_per_token": 2, "num_shared_experts": 1, "gated": True},
}
BLOCK = {"intermediate_dim": 12, "num_heads": 4}
CASES = [
    (layers.AlibiBias, {"alibi_bias_max": 4}),
    (layers.FeedForward, {"intermediate_dim": 12}),
    (layers.FeedForward, {"intermediate_dim": 12, "gated": True, "activation": "silu"}),
    (layers.FeedForward, {"intermediate_dim": 12, "use_bias": False, "dropout": 0.2}),
    (layers.MultiHeadAttention, {"num_heads": 4, "head_dim": 6}),
    *[(layers.MultiHeadAttention, {"num_heads": 4, "head_dim": 6, **v}) for v in VARIANTS.values()],
    (layers.MaskedLMHead, {"vocabulary_size": 8}),
    (layers.MixtureOfExperts, {"num_experts": 4, "top_k": 2, "intermediate_dim": 12}),
    (
        layers.MixtureOfExperts,
        {
            "num_experts": 3,
            "top_k": 1,
            "intermediate_dim": 12,
            "gated": False,
            "activation": "gelu_tanh",
            "num_shared_experts": 2,
            "normalize_weights": False,
        },
    ),
    (layers.PositionEmbedding, {"sequence_length": 7}),
    (layers.RelativePositionBias, {"num_buckets": 8, "max_distance": 20}),
    (layers.RelativePositionBias, {"num_buckets": 8, "bidirectional": False}),
    (layers.RotaryEmbedding, {"max_wavelength": 500, "scaling_factor": 2.0}),
    (layers.RotaryEmbedding, {"scaling_factor": layers.YarnScaling(4.0, 16), "fraction": 0.5}),
    (layers.SinePositionEncoding, {"max_wavelength": 500}),
    (
        layers.TokenAndPositionEmbedding,
        {"vocabulary_size": 11, "sequence_length": 7, "embedding_dim": 8},
    ),
    *[
        (layer, {**BLOCK, **extra})
        for layer in (layers.TransformerEncoder, layers.TransformerDecoder)
        for extra in (
            {},
            {"normalize_first": True, "norm": "rms", "gated": True, "use_bias": False},
            *VARIANTS.values(),
            *BLOCKS.values(),
        )
    ],
]
SCORES = (layers.AlibiBias, layers.RelativePositionBias)


def make_inputs(layer_class):
    if layer_class is layers.TokenAndPositionEmbedding:
        return np.arange(14, dtype="int32").reshape(2, 7) % 11
    if layer_class in SCORES:
        return np.random.default_rng(0).normal(size=(2, 3, 7, 8)).astype("float32")
    hidden = np.random.default_rng(0).normal(size=(2, 7, 8)).astype("float32")
    if layer_class is layers.MaskedLMHead:
        return {"inputs": hidden, "mask_positions": np.tile(np.arange(7, dtype="int32"), (2, 1))}
    return hidden


def call_layer(layer, inputs):
    return layer(**inputs) if isinstance(inputs, dict) else layer(inputs)


def test_every_exported_layer_has_a_case():
    exported = {
        value
        for name in layers.__all__
        if inspect.isclass(value := getattr(layers, name)) and issubclass(value, keras.layers.Layer)
    }
    assert exported == {layer for layer, _ in CASES}


@pytest.mark.parametrize(
    "layer_class, arguments",
    [c for c in CASES if c[0] is not layers.MaskedLMHead],  # its `build` takes no keyword arguments
)
def test_keras_layer_test(layer_class, arguments):
    inputs = make_inputs(layer_class)
    TestCase().run_layer_test(
        layer_class,
        init_kwargs=arguments,
        input_data=inputs,
        expected_output_shape=(2, 3, 7, 8) if layer_class in SCORES else (2, 7, 8),
    )


@pytest.mark.parametrize("layer_class, arguments", CASES)
def test_bfloat16(layer_class, arguments):
    inputs = make_inputs(layer_class)
    exact = layer_class(**arguments)
    expected = np.asarray(call_layer(exact, inputs))
    mixed = layer_class(**arguments, dtype="mixed_bfloat16")
    call_layer(mixed, inputs)
    mixed.set_weights(exact.get_weights())
    output = call_layer(mixed, inputs)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    assert all(v.dtype == "float32" for v in mixed.trainable_weights)
    np.testing.assert_allclose(np.asarray(output, "float32"), expected, atol=0.15)


@pytest.mark.parametrize(
    "layer_class, arguments",
    [c for c in CASES if c[0] not in (*SCORES, layers.MaskedLMHead)],
)
def test_save_and_load_with_variable_length(layer_class, arguments, tmp_path):
    inputs = make_inputs(layer_class)
    dtype = "int32" if inputs.dtype == "int32" else "float32"
    symbol = keras.Input((None, *inputs.shape[2:]), dtype=dtype)
    model = keras.Model(symbol, layer_class(**arguments)(symbol))
    expected = np.asarray(model(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(inputs)), expected)
    assert loaded(inputs[:1, :3]).shape == (1, 3, 8)


@pytest.mark.parametrize(
    "layer_class, arguments", [c for c in CASES if "Transformer" in c[0].__name__]
)
def test_padding_is_ignored(layer_class, arguments):
    inputs = make_inputs(layer_class)
    layer = layer_class(**arguments)
    name = "decoder_padding_mask" if layer_class is layers.TransformerDecoder else "padding_mask"
    mask = np.arange(7) < np.array([[7], [4]])
    output = np.asarray(layer(inputs, **{name: mask}))
    changed = np.where(mask[..., None], inputs, 9.0).astype("float32")
    np.testing.assert_allclose(
        output[mask], np.asarray(layer(changed, **{name: mask}))[mask], atol=1e-6
    )
    assert not np.allclose(output[1, 4:], np.asarray(layer(changed, **{name: mask}))[1, 4:])


@pytest.mark.parametrize(
    "layer_class, arguments", [c for c in CASES if c[0] is layers.MultiHeadAttention]
)
def test_masked_keys_are_ignored(layer_class, arguments):
    inputs = make_inputs(layer_class)
    layer = layer_class(**arguments)
    mask = np.tril(np.ones((1, 7, 7), bool))
    changed = inputs.copy()
    changed[:, 4:] = 9.0
    before = np.asarray(layer(inputs, attention_mask=mask))
    after = np.asarray(layer(changed, attention_mask=mask))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not np.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.MultiHeadAttention(4, 6, num_key_value_heads=3), "num_key_value_heads"),
        (lambda: layers.MultiHeadAttention(0, 6), "num_heads"),
        (lambda: layers.MultiHeadAttention(4, 6, position="rotary"), "position"),
        (lambda: layers.MultiHeadAttention(4, 6, sliding_window=0), "sliding_window"),
        (lambda: layers.FeedForward(0), "intermediate_dim"),
        (lambda: layers.TransformerDecoder(8, 3).build((None, 5, 8)), "num_heads"),
        (lambda: layers.TransformerEncoder(8, 2, norm="batch"), "norm"),
        (lambda: layers.TransformerEncoder(8, 2, sandwich_norm=True), "normalize_first"),
        (lambda: layers.TransformerEncoder(8, 2, activation="swoosh"), "swoosh"),
        (lambda: layers.MultiHeadAttention(4, 6, num_sink_tokens=2), "num_sink_tokens"),
        (lambda: layers.MixtureOfExperts(1, 1, 8), "num_experts"),
        (lambda: layers.MixtureOfExperts(4, 5, 8), "top_k"),
        (lambda: layers.MixtureOfExperts(4, 2, 0), "intermediate_dim"),
        (lambda: layers.RelativeBias(num_buckets=5), "num_buckets"),
        (lambda: layers.RelativePositionBias(32, 16), "max_distance"),
        (lambda: layers.RelativePositionBias()(np.zeros((1, 4, 4), "float32")), "attention_scores"),
        (lambda: layers.MaskedLMHead(), "vocabulary_size"),
        (lambda: layers.RotaryEmbedding(rope_type="spiral"), "rope_type"),
        (lambda: layers.PositionEmbedding(0), "sequence_length"),
        (lambda: layers.PositionEmbedding(3)(np.zeros((1, 4, 8), "float32")), "sequence_length"),
        (lambda: layers.TokenAndPositionEmbedding(0, 4, 8), "vocabulary_size"),
        (lambda: layers.RotaryEmbedding()(np.zeros((1, 4, 2, 7), "float32")), "even"),
        (lambda: layers.Rotary(base=0.0), "base"),
        (lambda: layers.Rotary(scaling=-1), "scaling"),
        (lambda: layers.Rotary(scaling="yarn"), "scaling"),
        (lambda: layers.Rotary(scaling=layers.NTKScaling(0.5)), "factor"),
        (lambda: layers.Rotary(fraction=0.0), "fraction"),
        (lambda: layers.Alibi(max_bias=0), "max_bias"),
        (lambda: layers.AlibiBias()(np.zeros((1, 4, 4), "float32")), "attention_scores"),
    ],
)
def test_invalid_arguments_raise_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
