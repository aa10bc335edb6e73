"""Test models and cached decoding, which equals the full forward pass for all options."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import layers, models, preset_names
from keras_llm.errors import InputError

SIZES = {
    "vocabulary_size": 23,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_length": 16,
}


ROTARIES = [
    models.Rotary(),
    models.Rotary(base=100.0, scaling=2.0),
    models.Rotary(scaling=layers.NTKScaling(4.0)),
    models.Rotary(fraction=0.5),
    models.Rotary(scaling=layers.YarnScaling(4.0, 8)),
    models.Rotary(scaling=layers.Llama3Scaling(8.0, 1.0, 4.0, 64)),
]
POSITIONS = [
    *ROTARIES,
    models.Alibi(),
    models.RelativeBias(num_buckets=4, max_distance=6),
    "learned",
    "sinusoidal",
    None,
]


def draw_options(draw):
    """Draw a value for every option of a decoder."""
    num_heads = draw(st.sampled_from([1, 2, 4]))
    norm_position = draw(st.sampled_from(["pre", "post", "sandwich"]))
    sliding_window = draw(st.sampled_from([None, 1, 3, 7]))
    windowed = sliding_window is not None
    window_pattern = draw(st.sampled_from([None, "SL", "LS"])) if windowed else None
    return {
        "num_layers": 2 if window_pattern else draw(st.sampled_from([1, 2])),
        "num_heads": num_heads,
        "num_key_value_heads": draw(st.sampled_from([k for k in (1, 2, 4) if num_heads % k == 0])),
        "head_dim": draw(st.sampled_from([None, 8])),
        "position": draw(st.sampled_from(POSITIONS)),
        "norm": draw(st.sampled_from(["rms", "layer"])),
        "norm_position": norm_position,
        "parallel_residual": draw(st.booleans()) and norm_position != "post",
        "activation": draw(st.sampled_from(["silu", "gelu_tanh"])),
        "gated": draw(st.booleans()),
        "use_bias": draw(st.booleans()),
        "sliding_window": sliding_window,
        "window_pattern": window_pattern,
        "num_sink_tokens": draw(st.sampled_from([0, 2])) if windowed else 0,
        "local_position": draw(st.sampled_from([None, models.Rotary(base=50.0), models.Alibi()]))
        if windowed
        else None,
        "learned_sinks": draw(st.booleans()),
        "logit_soft_cap": draw(st.sampled_from([None, 5.0])),
        "final_soft_cap": draw(st.sampled_from([None, 4.0])),
        "attention_scale": draw(st.sampled_from([None, 1.0])),
        "embedding_scale": draw(st.sampled_from([None, 3.0])),
        "logit_scale": draw(st.sampled_from([None, 0.5])),
        "qk_norm": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "num_experts": draw(st.sampled_from([0, 3])),
        "num_shared_experts": draw(st.sampled_from([0, 1])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "initializer_range": 0.4,
    }


@st.composite
def configs(draw):
    return models.CausalLMConfig(**SIZES, **draw_options(draw))


@st.composite
def seq2seq_configs(draw):
    drawn = {**draw_options(draw), "parallel_residual": False}
    return models.Seq2SeqConfig(**SIZES, **drawn, num_decoder_layers=draw(st.sampled_from([1, 2])))


def assert_cached_steps_match(
    model, token_ids, lengths, full, slack, extra=None, tolerance=1e-4, chunk=256, num_cached=0
):
    """Check that prefill and decode give the full forward's logits, from ragged prompts to the end.

    The first `num_cached` tokens are already in the cache.
    """
    rows, total = token_ids.shape
    cache = {**models.init_cache(model, rows, total + slack), **(extra or {})}
    prompts = token_ids[:, : lengths.max()]
    # Tokens after a row's length must not matter.
    prompts = np.where(np.arange(prompts.shape[1]) < lengths[:, None], prompts, 1)
    num_cached, first = min(num_cached, lengths.min() - 1), None
    if num_cached:
        _, cache = models.prefill(model, prompts[:, :num_cached], np.full(rows, num_cached), cache)
        prompts[:, :num_cached] = 1  # not read again
        first = np.array(num_cached, "int32")
    logits, cache = models.prefill(model, prompts, lengths, cache, first, chunk)
    steps = total - lengths.max()
    for step in range(steps + 1):
        positions = lengths - 1 + step
        expected = full[np.arange(rows), positions]
        np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)
        if step < steps:
            positions = (positions + 1)[:, None]
            next_ids = np.take_along_axis(token_ids, positions, axis=1)
            logits, cache = models.decode(model, next_ids, positions, cache)


@settings(max_examples=60)
@given(
    config=configs(),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    slack=st.integers(0, 4),
    chunk=st.sampled_from([1, 3, 5, 256]),
    num_cached=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_cached_decode_matches_full_forward(config, lengths, slack, chunk, num_cached, seed):
    keras.utils.set_random_seed(seed)
    model = models.causal_lm(config)
    token_ids = np.random.default_rng(seed).integers(0, 23, (len(lengths), 12)).astype("int32")
    full = np.asarray(model(token_ids))
    lengths = np.array(lengths, "int32")
    assert_cached_steps_match(
        model, token_ids, lengths, full, slack, chunk=chunk, num_cached=num_cached
    )


@settings(max_examples=25)
@given(
    config=seq2seq_configs(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_seq2seq_cached_decode_matches_full_forward(config, lengths, seed):
    keras.utils.set_random_seed(seed)
    model = models.seq2seq(config)
    draw = np.random.default_rng(seed)
    sources = draw.integers(1, 23, (len(lengths), 7)).astype("int32")
    sources *= np.arange(7) < draw.integers(1, 8, (len(lengths), 1))  # ragged: 0 is padding
    token_ids = draw.integers(0, 23, (len(lengths), 8)).astype("int32")
    full = np.asarray(model([sources, token_ids]))
    encoder_cache = models.encode_source(model, sources)
    assert_cached_steps_match(model, token_ids, np.array(lengths, "int32"), full, 1, encoder_cache)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-5), ("mixed_bfloat16", 0.05)])
@pytest.mark.parametrize("name", ["gemma3-tiny", "lamda-tiny", "mistral-tiny", "gpt3-tiny"])
def test_cached_decode_matches_full_forward_in_other_dtypes(name, dtype, tolerance):
    keras.utils.set_random_seed(1)
    changes = {"sliding_window": 4} if models.preset(name).sliding_window else {}
    if not models.preset(name).window_pattern:  # otherwise the layers differ
        changes["num_layers"] = 1
    config = models.preset(name, **changes)
    model = models.causal_lm(config, dtype=dtype)
    token_ids = np.random.default_rng(1).integers(0, 512, (3, 14)).astype("int32")
    assert_cached_steps_match(
        model,
        token_ids,
        np.array([9, 1, 6], "int32"),
        np.asarray(model(token_ids)),
        slack=0,
        tolerance=tolerance,
    )


@settings(max_examples=30)
@given(config=configs(), split=st.integers(1, 7), seed=st.integers(0, 2**16))
def test_packed_and_left_padded_rows_match_unpadded_rows(config, split, seed):
    keras.utils.set_random_seed(seed)
    model = models.causal_lm(config)
    row = np.random.default_rng(seed).integers(0, 23, (1, 8)).astype("int32")
    text = (np.arange(8) >= split).astype("int32")[None]
    positions = (np.arange(8) - split * text).astype("int32")
    mask = (text[:, :, None] == text[:, None]) & (positions[:, :, None] >= positions[:, None])
    packed = np.asarray(models.forward(model, row, positions, mask))
    for part in (slice(0, split), slice(split, 8)):
        np.testing.assert_allclose(packed[:, part], model(row[:, part]), atol=1e-4, rtol=0)
    padded = np.concatenate([np.full((1, 3), 7, "int32"), row], axis=1)
    positions = np.maximum(np.arange(11) - 3, 0).astype("int32")[None]
    real = np.arange(11) >= 3
    mask = (np.arange(11)[:, None] >= np.arange(11)) & real
    logits = models.forward(model, padded, positions, mask[None])
    np.testing.assert_allclose(logits[:, 3:], model(row), atol=1e-4, rtol=0)


def test_forward_returns_attention_scores():
    model = models.causal_lm(models.preset("gpt3-tiny", sliding_window=3))
    token_ids = np.arange(8, dtype="int32")[None]
    logits, scores = models.forward(model, token_ids, return_attention_scores=True)
    np.testing.assert_allclose(logits, model(token_ids), atol=1e-5)
    assert [s.shape for s in scores] == [(1, 4, 8, 8)] * 2
    i, j = np.arange(8)[:, None], np.arange(8)
    np.testing.assert_array_equal(np.asarray(scores[0])[0, 0] > 0, j <= i)  # full
    np.testing.assert_array_equal(np.asarray(scores[1])[0, 0] > 0, (j <= i) & (i - j < 3))


def test_cross_attention_maps():
    config = models.preset("t5-tiny", initializer_range=0.3)
    model, pad = models.seq2seq(config), config.pad_id
    source, target = np.array([[5, 6, 7, 8, pad, pad]]), np.array([[2, 9, 10]])

    def maps(target):
        inputs = {"encoder_token_ids": source, "decoder_token_ids": target}
        return [np.asarray(x) for x in models.cross_attention_maps(model, inputs)]

    scores = maps(target)
    assert len(scores) == config.num_decoder_layers
    for probabilities in scores:
        assert probabilities.shape == (1, config.num_heads, 3, 6)
        assert np.allclose(probabilities.sum(-1), 1, atol=1e-5)
        assert np.all(probabilities[..., 4:] == 0)  # padding gets no attention
    changed_scores = maps(np.array([[2, 9, 11]]))
    for before, after in zip(scores, changed_scores, strict=True):
        assert np.allclose(before[:, :, :2], after[:, :, :2], atol=1e-5)
        assert np.abs(before[:, :, 2] - after[:, :, 2]).max() > 1e-4
    attention = model.get_layer("decoder_block_1").cross_attention
    kernel = attention.query_projection.kernel
    kernel.assign(np.zeros(kernel.shape))
    assert np.allclose(maps(target)[1][..., :4], 1 / 4)  # zero queries match all keys equally
    with pytest.raises(InputError, match="seq2seq"):
        models.cross_attention_maps(models.causal_lm(models.preset("llama-tiny")), {})


def test_windowed_layer_has_ring_cache():
    config = models.preset("gemma3-tiny", sliding_window=5, num_sink_tokens=1)
    cache = models.init_cache(models.causal_lm(config), 2, 30)
    assert [cache[f"k_{i}"].shape[2] for i in range(2)] == [6, 30]
    assert models.init_cache(models.causal_lm(config), 2, 4)["k_0"].shape[2] == 4


def test_cache_entry_names_and_shapes():
    model = models.causal_lm(models.preset("llama-tiny"))
    cache = models.init_cache(model, 3, 9)
    assert list(cache) == ["k_0", "v_0", "k_1", "v_1"]
    assert {tuple(entry.shape) for entry in cache.values()} == {(3, 2, 9, 16)}
    _, after = models.prefill(model, np.zeros((3, 4), "int32"), np.array([4, 2, 1]), cache)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in cache.items()}


def test_prefill_and_decode_accept_lists():
    model = models.causal_lm(models.preset("llama-tiny"))
    logits, cache = models.prefill(model, [[5, 6], [7, 0]], [2, 1], models.init_cache(model, 2, 4))
    logits, _ = models.decode(model, [[8], [9]], [[2], [1]], cache)
    full = np.asarray(model(np.array([[5, 6, 8], [7, 9, 0]])))
    np.testing.assert_allclose(logits, full[[0, 1], [2, 1]], atol=1e-5)


def test_prompt_longer_than_cache_raises_error():
    model = models.causal_lm(models.preset("llama-tiny"))
    cache = models.init_cache(model, 1, 4)
    with pytest.raises(InputError, match="5 tokens, `cache` only 4 slots"):
        models.prefill(model, np.zeros((1, 5), "int32"), np.array([5]), cache)


def test_bfloat16_model_matches_float32():
    config = models.preset("llama-tiny")
    exact, mixed = models.causal_lm(config), models.causal_lm(config, dtype="mixed_bfloat16")
    mixed.set_weights(exact.get_weights())
    token_ids = np.arange(12, dtype="int32").reshape(2, 6)
    logits = mixed(token_ids)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, exact(token_ids), atol=0.02)
    cache = models.init_cache(mixed, 2, 8)
    assert cache["k_0"].dtype == "bfloat16"
    last, _ = models.prefill(mixed, token_ids, np.array([6, 6]), cache)
    np.testing.assert_allclose(last, logits[:, -1], atol=0.02)


def test_later_tokens_are_ignored():
    model = models.causal_lm(models.preset("gpt-tiny"))
    token_ids = np.arange(8, dtype="int32")[None]
    changed = token_ids.copy()
    changed[0, 5:] = 99
    before, after = np.asarray(model(token_ids)), np.asarray(model(changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not np.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_fit_save_and_load(name, tmp_path):
    keras.utils.set_random_seed(0)
    config = models.preset(name, dropout=0.1, num_layers=1)  # compiled by XLA
    model = models.causal_lm(config)
    x = np.tile(np.arange(12, dtype="int32"), (16, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    history = model.fit(x[:, :-1], x[:, 1:], epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == model.config
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
    assert isinstance(loaded.get_layer("block_0"), type(model.get_layer("block_0")))


def test_presets():
    assert {"gpt-tiny", "llama-tiny"} <= set(models.presets())
    assert models.presets() == preset_names.NAMES  # a list that commands read without Keras
    assert models.preset("gpt-tiny").position == "learned"
    assert models.preset("llama-tiny").position == models.Rotary()
    parameters = models.causal_lm(models.preset("llama-3m")).count_params()
    assert 2.5e6 < parameters < 3.5e6
    with pytest.raises(InputError, match="llama-tiny"):
        models.preset("llama-tinny")
    with pytest.raises(InputError, match="depth"):
        models.preset("llama-tiny", depth=3)


@given(configs())
def test_config_round_trip_through_json(config):
    row = json.loads(json.dumps(config.to_dict()))
    assert models.CausalLMConfig.from_dict(row) == config


@pytest.mark.parametrize(
    "change, field",
    [
        ({"vocabulary_size": 0}, "vocabulary_size"),
        ({"num_layers": 1.5}, "num_layers"),
        ({"max_length": 1}, "max_length"),
        ({"num_heads": 3}, "num_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"position": "sines"}, "position"),
        ({"local_position": layers.Rotary()}, "local_position"),
        ({"window_pattern": "SX", "sliding_window": 2}, "window_pattern"),
        ({"window_pattern": "SL"}, "window_pattern"),
        ({"num_sink_tokens": 2}, "num_sink_tokens"),
        ({"norm_position": "both"}, "norm_position"),
        ({"norm_position": "post", "parallel_residual": True}, "parallel_residual"),
        ({"activation": "swoosh"}, "activation"),
        ({"num_experts": 1}, "num_experts"),
        ({"num_experts": 2, "experts_per_token": 3}, "experts_per_token"),
        ({"attention_scale": 0.0}, "attention_scale"),
        ({"embedding_scale": "sqrt"}, "embedding_scale"),
        ({"norm": "batch"}, "norm"),
        ({"dropout": 1.0}, "dropout"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"final_soft_cap": -1.0}, "final_soft_cap"),
    ],
)
def test_invalid_config_raises_error_with_field(change, field):
    with pytest.raises(InputError, match=f"`{field}`"):
        models.CausalLMConfig(**{**SIZES, "num_layers": 2, "num_heads": 4, **change})


def test_causal_lm_without_config_raises_error():
    with pytest.raises(InputError, match="CausalLMConfig"):
        models.causal_lm({"vocabulary_size": 3})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: models.init_cache(model), "map token ids"),
        (lambda model: models.prefill(model, [[3]], [1], {}), "map token ids"),
        (lambda model: models.decode(model, [[3]], [[0]], {}), "map token ids"),
        (lambda model: models.forward(model, [[3]]), "come from causal_lm"),
        (lambda model: models.encode_source(model, [[3]]), "come from seq2seq"),
    ],
)
def test_models_of_other_kinds_raise_error(call, message):
    inputs = keras.Input((4,))
    for model in (keras.Model(inputs, inputs), models.encoder(models.preset("bert-tiny"))):
        with pytest.raises(InputError, match=f"`model` must {message}"):
            call(model)
