"""Test Keras's services on layers: configs, dtype policies, symbolic calls and shared layers."""

import inspect

import keras
import keras_nlp
import numpy as np
import pytest

import keras_llm
from keras_llm import layers, models

RNG = np.random.default_rng(29)
BLOCK = {"intermediate_dim": 12, "num_heads": 2}
# The layers that keras_nlp has under the same name, with arguments that are not defaults.
SHARED = {
    "AlibiBias": {"alibi_bias_max": 4},
    "MaskedLMHead": {"vocabulary_size": 11, "layer_norm_epsilon": 1e-3, "activation": "softmax"},
    "PositionEmbedding": {"sequence_length": 9, "initializer": "zeros"},
    "RotaryEmbedding": {"max_wavelength": 500, "scaling_factor": 2.0, "rope_type": "dynamic"},
    "SinePositionEncoding": {"max_wavelength": 500},
    "TokenAndPositionEmbedding": {
        "vocabulary_size": 11,
        "sequence_length": 9,
        "embedding_dim": 8,
        "tie_weights": False,
        "mask_zero": True,
    },
    "TransformerDecoder": {**BLOCK, "normalize_first": True, "activation": "gelu"},
    "TransformerEncoder": {**BLOCK, "normalize_first": True, "dropout": 0.1},
}


def random(*shape):
    return RNG.normal(size=shape).astype("float32")


def test_every_layer_of_the_same_name_is_compared():
    names = {name for name in keras_nlp.layers.__dict__ if name in layers.__all__}
    assert names == set(SHARED)


# Arguments and configs


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("method", ["__init__", "call"])
def test_arguments_begin_with_those_of_keras_nlp(name, method):
    def arguments(module):
        function = getattr(getattr(module.layers, name), method)
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    theirs = arguments(keras_nlp)
    assert arguments(keras_llm)[: len(theirs)] == theirs


@pytest.mark.parametrize("name", SHARED)
def test_config_of_keras_nlp_is_read(name):
    theirs = getattr(keras_nlp.layers, name)(**SHARED[name], name="layer", dtype="bfloat16")
    ours = getattr(layers, name).from_config(theirs.get_config())
    config = ours.get_config()
    for key, value in theirs.get_config().items():
        if not key.endswith("_sequence_shape"):
            assert config[key] == value, key
    assert ours.dtype_policy.name == "bfloat16"


@pytest.mark.parametrize("cross", [False, True])
def test_config_of_built_decoder_of_keras_nlp_is_read(cross, copy_block_weights):
    inputs = [random(2, 5, 8), random(2, 3, 8)] if cross else [random(2, 5, 8)]
    theirs = keras_nlp.layers.TransformerDecoder(**BLOCK)
    theirs(*inputs)
    ours = layers.TransformerDecoder.from_config(theirs.get_config())
    assert ours.built
    copy_block_weights(ours, theirs)
    np.testing.assert_allclose(ours(*inputs), theirs(*inputs), atol=1e-5)


@pytest.mark.parametrize(
    "layer_class, config",
    [
        (layers.FeedForward, {"intermediate_dim": 12}),
        (layers.MaskedLMHead, {"vocabulary_size": 11}),
        (layers.MixtureOfExperts, {"num_experts": 3, "top_k": 1, "intermediate_dim": 12}),
        (layers.MultiHeadAttention, {"num_heads": 2, "head_dim": 4}),
        (layers.RelativePositionBias, {}),
        (layers.Rotary, {}),
        (layers.RotaryEmbedding, {}),
        (layers.TransformerDecoder, BLOCK),
        (layers.TransformerEncoder, BLOCK),
    ],
)
def test_config_of_required_arguments_gives_defaults(layer_class, config):
    expected = layer_class(**config).get_config()
    result = layer_class.from_config(dict(config)).get_config()
    assert {**result, "name": ""} == {**expected, "name": ""}


# Dtype policies


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
@pytest.mark.parametrize("position", [layers.RelativeBias(8, 20), layers.Alibi(), None])
def test_all_weights_have_the_dtype_of_the_policy(dtype, position):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 by default")
    for layer in (
        layers.TransformerEncoder(**BLOCK, position=position, qk_norm=True, learned_sinks=True),
        layers.TransformerDecoder(**BLOCK, position=position, num_experts=2),
        layers.MultiHeadAttention(2, 4, position=position),
    ):
        layer = type(layer).from_config({**layer.get_config(), "dtype": dtype})
        x = random(2, 5, 8)
        output = layer(x)
        assert {w.dtype for w in layer.weights if "seed" not in w.path} == {layer.variable_dtype}
        assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
        exact = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
        exact(x)
        exact.set_weights(layer.get_weights())
        np.testing.assert_allclose(np.asarray(output, "float32"), exact(x), atol=0.1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_shared_relative_bias_has_the_dtype_of_the_model(dtype):
    model = models.seq2seq(models.preset("t5-tiny"), dtype=dtype)
    assert {w.dtype for w in model.weights} == {dtype}
    ids = np.arange(3, 15)[None]
    exact = models.seq2seq(models.preset("t5-tiny"))
    exact.set_weights(model.get_weights())
    np.testing.assert_allclose(model([ids, ids]), exact([ids, ids]), atol=0.1)


# Symbolic calls


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("form", ["none", "pair", "stacked"])
@pytest.mark.parametrize("cross", [False, True])
def test_symbolic_call_of_decoder_has_the_outputs_of_the_call(scores, form, cross):
    block = layers.TransformerDecoder(**BLOCK)
    arrays = {"decoder_sequence": random(2, 3, 8)}
    if cross:
        arrays["encoder_sequence"] = random(2, 4, 8)
    if form != "none":
        shape = (2, 2, 6, 4) if form == "pair" else (2, 2, 6, 2, 4)
        caches = ["self_attention_cache"] + (["cross_attention_cache"] if cross else [])
        for name in caches:
            arrays[name] = (random(*shape), random(*shape)) if form == "pair" else random(*shape)
    options = {"return_attention_scores": scores}
    if form != "none":
        options["self_attention_cache_update_index"] = 0
    check_symbolic_call(block, arrays, options)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_symbolic_call_of_attention_has_the_outputs_of_the_call(scores, cached):
    layer = layers.MultiHeadAttention(2, 4, num_key_value_heads=1)
    arrays, options = {"query": random(2, 3, 8)}, {"return_attention_scores": scores}
    if cached:
        arrays["cache"] = (random(2, 1, 6, 4), random(2, 1, 6, 4))
        options["cache_update_index"] = 0
    check_symbolic_call(layer, arrays, options)


def test_symbolic_call_of_encoder_returns_scores():
    block = layers.TransformerEncoder(**BLOCK)
    check_symbolic_call(block, {"inputs": random(2, 3, 8)}, {"return_attention_scores": True})


def check_symbolic_call(layer, arrays, options):
    """Compare the outputs of a layer with those of a functional model of its symbolic call."""

    def symbol(array):
        return keras.Input(array.shape[1:], batch_size=len(array), dtype=array.dtype.name)

    symbols = keras.tree.map_structure(symbol, arrays)
    outputs = layer(**symbols, **options)
    expected = keras.tree.flatten(layer(**arrays, **options))
    flat = keras.tree.flatten(outputs)
    assert [tuple(x.shape) for x in flat] == [tuple(x.shape) for x in expected]
    assert [x.dtype for x in flat] == [keras.backend.standardize_dtype(x.dtype) for x in expected]
    model = keras.Model(keras.tree.flatten(symbols), outputs)
    results = keras.tree.flatten(model(keras.tree.flatten(arrays)))
    for result, array in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, array, atol=1e-6)


def test_symbolic_call_with_unknown_length_returns_scores():
    x = keras.Input((None, 8))
    output, scores = layers.TransformerDecoder(**BLOCK)(x, return_attention_scores=True)
    assert output.shape == (None, None, 8) and scores.shape == (None, 2, None, None)


# A head that shares the embedding of another layer


def tied_model(kind):
    """Return a masked language model whose head shares the embedding of a layer `embed`."""
    ids, positions = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    if kind == "embedding":
        embed = keras.layers.ReversibleEmbedding(11, 8, name="embed")
        embedding = embed
    else:
        module = keras_nlp if kind == "keras_nlp" else keras_llm
        embed = module.layers.TokenAndPositionEmbedding(11, 6, 8, name="embed")
        embedding = embed.token_embedding
    hidden = layers.TransformerEncoder(**BLOCK, name="block")(embed(ids))
    if kind == "backbone":
        body = keras.Model(ids, hidden, name="backbone")
        ids = keras.Input((None,), dtype="int32")
        hidden = body(ids)
    # Another embedding of the same name and another size comes before.
    other = keras.layers.ReversibleEmbedding(7, 8, name=embedding.name)
    hidden = hidden + keras.Sequential([other], name="other")(ids % 7)
    logits = layers.MaskedLMHead(token_embedding=embedding, name="head")(hidden, positions)
    return keras.Model([ids, positions], logits)


def shared_embedding(model):
    holder = model.get_layer("backbone") if "backbone" in str(model.layers) else model
    embed = holder.get_layer("embed")
    return getattr(embed, "token_embedding", embed)


@pytest.mark.parametrize("kind", ["embedding", "keras_llm", "keras_nlp", "backbone"])
def test_tied_head_is_loaded_and_cloned_with_the_embedding_of_the_model(kind, tmp_path):
    model = tied_model(kind)
    inputs = [np.array([[1, 2, 3, 4]]), np.array([[0, 2]])]
    expected = np.asarray(model(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]
    clone.set_weights(model.get_weights())
    for copy in (loaded, clone):
        np.testing.assert_allclose(copy(inputs), expected, atol=1e-6)
        embedding = shared_embedding(copy)
        assert copy.get_layer("head").token_embedding is embedding
        assert embedding is not shared_embedding(model)
        assert len(copy.weights) == len(model.weights)
        embedding.embeddings.assign(embedding.embeddings * 2.0)
        assert not np.allclose(copy(inputs), expected, atol=1e-3)
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again(inputs), loaded(inputs), atol=1e-6)


def test_head_without_its_embedding_in_the_model_keeps_a_copy():
    head = layers.MaskedLMHead(token_embedding=keras.layers.ReversibleEmbedding(11, 8))
    hidden, positions = random(2, 5, 8), np.array([[0, 3], [4, 4]])
    expected = head(hidden, positions)
    copy = layers.MaskedLMHead.from_config(head.get_config())
    symbols = keras.Input((None, 8)), keras.Input((None,), dtype="int32")
    model = keras.Model(symbols, copy(*symbols))
    copy.set_weights(head.get_weights())
    np.testing.assert_allclose(model([hidden, positions]), expected, atol=1e-6)
