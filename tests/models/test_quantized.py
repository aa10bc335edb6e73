"""Test that models which Keras has quantized are saved such that they can be loaded."""

import gc
import json

import keras
import numpy as np
import pytest

from keras_llm import layers, models, tasks, tokenizers, training
from keras_llm.errors import InputError
from keras_llm.keras_internals import flatten_layers

RNG = np.random.default_rng(23)
IDS = RNG.integers(3, 200, (2, 9)).astype("int32")
MASK = np.arange(9) < np.array([[9], [6]])


@pytest.fixture(autouse=True)
def few_objects_to_collect():
    """Speed up `quantize`, which collects garbage once a layer."""
    gc.freeze()


def causal(preset="llama-tiny", **options):
    return models.causal_lm(models.preset(preset, **options))


def masked_lm():
    return models.masked_lm(models.preset("bert-tiny", num_segments=0))


MAKERS = {
    "llama": causal,
    "untied": lambda: causal(tie_embeddings=False, final_soft_cap=9.0),
    "gpt2": lambda: causal("gpt2-tiny"),
    "experts": lambda: causal(num_experts=3, num_shared_experts=1),
    "seq2seq": lambda: models.seq2seq(models.preset("t5-tiny")),
    "classifier": lambda: models.text_classifier(models.preset("distilbert-tiny"), 3),
    "embedder": lambda: models.sentence_embedder(causal(), projection_dim=5),
    "masked_lm": masked_lm,
}
QUANTIZERS = {
    "int8": lambda model: model.quantize("int8"),
    "int4": lambda model: model.quantize("int4"),
    "int4 per channel": lambda model: model.quantize(
        config=keras.quantizers.Int4QuantizationConfig(block_size=-1)
    ),
    "int4 blocks": lambda model: model.quantize(
        config=keras.quantizers.Int4QuantizationConfig(block_size=16)
    ),
    "float8": lambda model: model.quantize("float8"),
    "int8 weights only": lambda model: model.quantize(
        config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    ),
    "some layers": lambda model: model.quantize("int8", filters="query|down"),
    "two modes": lambda model: (
        model.quantize("int8", filters="query|key|value"),
        model.quantize("int4", filters="up|down"),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize")


def inputs_of(model):
    values = {"mask_positions": np.array([[1, 4], [0, 2]]), "padding_mask": MASK}
    return [values.get(x.name, IDS) for x in model.inputs]


def outputs_of(model):
    inputs = inputs_of(model)
    return np.asarray(model(inputs if len(inputs) > 1 else inputs[0]))


def randomized(model):
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * RNG.normal(size=weight.shape))
    return model


def modes_of(model):
    return {layer.path: layer.quantization_mode for layer in flatten_layers(model) if layer.path}


def reload_keras_file(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def reload_described(model, path):
    loaded = models.restore(json.loads(json.dumps(models.describe(model))))
    model.save_weights(path / "model.weights.h5")
    loaded.load_weights(path / "model.weights.h5")
    return loaded


def cloned(model, path):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


RELOADERS = [reload_keras_file, reload_described, cloned]


@pytest.mark.parametrize("reload", RELOADERS)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_quantized_model_is_reloaded(kind, reload, tmp_path):
    model = randomized(causal())
    exact = outputs_of(model)
    QUANTIZERS[kind](model)
    outputs = outputs_of(model)
    loaded = reload(model, tmp_path)
    np.testing.assert_array_equal(outputs_of(loaded), outputs)
    assert not np.array_equal(outputs, exact)
    assert modes_of(loaded) == modes_of(model)


@pytest.mark.parametrize("mode", ["int8", "float8"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_of_model_is_reloaded(name, mode, tmp_path):
    model = randomized(MAKERS[name]())
    model.quantize(mode)
    outputs = outputs_of(model)
    for reload in (reload_keras_file, reload_described):
        np.testing.assert_array_equal(outputs_of(reload(model, tmp_path)), outputs)


@pytest.mark.parametrize("reload", [reload_keras_file, reload_described])
@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("first", [False, True])
def test_adapters_of_quantized_model_are_reloaded_exactly(mode, first, reload, tmp_path):
    model = randomized(causal())
    if first:  # all layers are quantized, also the adapted embedding
        model.quantize(mode)
        training.add_lora(model, "query$|token_embedding", rank=2, alpha=3.0)
    else:
        training.add_lora(model, rank=2, alpha=3.0, quantization=mode)
    randomized(model)
    outputs = outputs_of(model)
    loaded = reload(model, tmp_path)
    np.testing.assert_array_equal(outputs_of(loaded), outputs)
    np.testing.assert_array_equal(outputs_of(model), outputs)
    assert [w.path for w in loaded.trainable_weights] == [w.path for w in model.trainable_weights]
    training.save_lora(loaded, tmp_path / "adapters.safetensors")


def test_weights_of_adapted_model_are_restored_in_place(tmp_path):
    model = causal()
    training.add_lora(model, rank=2, quantization="int8")
    randomized(model)
    outputs = outputs_of(model)
    model.save_weights(tmp_path / "model.weights.h5")
    randomized(model)
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(outputs_of(model), outputs)


@pytest.mark.parametrize("quantization", ["int8", None])
def test_trained_weights_of_adapted_model_are_kept(quantization, tmp_path):
    model = causal(use_bias=True)
    training.add_lora(model, "query", rank=2, quantization=quantization)
    model.get_layer("final_norm").trainable = True
    query = model.get_layer("block_0").self_attention.query_projection
    query.bias.trainable = True
    query.lora_kernel_a.trainable = False
    expected = [weight.path for weight in model.trainable_weights]
    assert len(expected) == 5  # B of two layers, A of one, a bias and a scale
    for reload in (reload_keras_file, reload_described):
        loaded = reload(model, tmp_path)
        assert [weight.path for weight in loaded.trainable_weights] == expected
    described = models.describe(model)
    for row in described["quantized"].values():
        row.pop("trained")  # as before the names were saved
    old = models.restore(described)
    assert len(old.trainable_weights) == 4 and all("lora" in w.path for w in old.trainable_weights)


@pytest.mark.parametrize("kind", ["int8", "int4", "float8", "QLoRA", "enable_lora"])
def test_quantized_task_is_reloaded(kind, tmp_path):
    tokenizer = tokenizers.BytePair.train(["once upon a time, there was a fox"] * 5, 280)
    model = causal(vocabulary_size=280, initializer_range=0.3, max_length=48)
    if kind == "QLoRA":
        training.add_lora(model, rank=2, quantization="int8")
        randomized(model)
    else:
        model.quantize("int8" if kind == "enable_lora" else kind)
    if kind == "enable_lora":  # Keras's own method
        model.get_layer("block_0").self_attention.query_projection.enable_lora(2)
        randomized(model)
    task = tasks.TextGeneration(model, tokenizer)
    logits = outputs_of(model)
    task.save(tmp_path / "task")
    loaded = tasks.load(tmp_path / "task")
    np.testing.assert_array_equal(outputs_of(loaded.model), logits)
    if kind in ("int8", "QLoRA"):  # logits and text are computed by different graphs
        texts = [x("once", max_new_tokens=6, temperature=0.0) for x in (task, loaded)]
        assert texts[0] == texts[1]
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(outputs_of(tasks.load(tmp_path / "again").model), logits)


def test_amax_history_length_is_kept(tmp_path):
    model = causal()
    dense = model.get_layer("block_0").feed_forward.up
    dense.dtype_policy = keras.dtype_policies.QuantizedFloat8DTypePolicy(
        "float8", "float32", amax_history_length=7
    )
    loaded = reload_keras_file(model, tmp_path)
    assert loaded.get_layer("block_0").feed_forward.up.inputs_amax_history.shape == (7,)


def test_quantized_head_uses_dequantized_kernel():
    """The training loss reads the kernel of the output head instead of the logits."""
    for options in ({}, {"tie_embeddings": False, "final_soft_cap": 9.0}):
        for mode in ("int8", "int4"):
            model = randomized(causal(**options))
            exact = models.output_head(model)
            model.quantize(mode, filters="token_embedding")
            head = models.output_head(model)
            assert head.soft_cap == exact.soft_cap and not head.trainable
            error = np.abs(np.asarray(head.kernel) - np.asarray(exact.kernel)).max(0)
            largest = np.abs(np.asarray(exact.kernel)).max()
            assert error.max() < largest * (0.01 if mode == "int8" else 0.15)
    table = models.token_table(causal())
    model = causal()
    expected = models.token_table(model)
    model.quantize("int8")
    np.testing.assert_allclose(models.token_table(model), expected, atol=np.abs(table).max() / 100)


INT4 = {
    "module": "keras.quantizers",
    "class_name": "Int4QuantizationConfig",
    "config": {"block_size": 16},
    "registered_name": None,
}
DENSE = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}
UP = "block_0/feed_forward/up"
ROW = {"mode": "int8", "config": None, "amax_history_length": None, "lora": None}


@pytest.mark.parametrize(
    "path, changes, message",
    [
        (UP, {"mode": ["int8"]}, r"`mode` must be str \| None, got \['int8'\]"),
        (UP, {"mode": "int2"}, "`mode` must be one of .*, got 'int2'"),
        (UP, {"mode": "float8"}, "must be positive ints"),
        (UP, {"mode": "float8", "amax_history_length": "7"}, "`amax_history_length` must be int"),
        (UP, {"config": [INT4]}, "`config` must be"),
        (UP, {"config": DENSE}, "the class 'Dense' is not one of keras.quantizers"),
        (UP, {"config": INT4 | {"registered_name": "keras_llm>Trainer"}}, "the class 'Int4"),
        (UP, {"config": INT4 | {"module": "os", "class_name": "system"}}, "the class 'system'"),
        (UP, {"config": INT4 | {"config": {"weight_quantizer": DENSE}}}, "the class 'Dense'"),
        (UP, {"config": {"class_name": "__tensor__", "config": {}}}, "the class '__tensor__'"),
        (UP, {"mode": "int4", "config": INT4 | {"config": {"block_size": "x"}}}, "as described"),
        (UP, {"mode": "int8", "config": INT4}, "as described"),
        (UP, {"lora": {"rank": 0, "alpha": 1.0}}, "must be positive ints"),
        (UP, {"lora": {"rank": "2", "alpha": 1.0}}, "`rank` must be int"),
        (UP, {"lora": {"rank": 2}}, "`alpha` must be float, got nothing"),
        (UP, {"lora": {"rank": 2, "alpha": 1.0, "dora": 1}}, "`dora` must be bool, got 1"),
        (UP, {"trained": "bias"}, r"`trained` must be list\[str\], got 'bias'"),
        ("final_norm", {}, "'final_norm' cannot be quantized as described"),
        ("none", {}, "no layer 'none' to quantize"),
    ],
)
def test_invalid_description_raises_error(path, changes, message):
    described = {**models.describe(causal()), "quantized": {path: ROW | changes}}
    with pytest.raises(InputError, match=message):
        models.restore(described)


@pytest.mark.parametrize("rows", [[1], {UP: 3}, {UP: {"mode": "int8"}}])
def test_description_of_wrong_type_raises_error(rows):
    with pytest.raises(InputError, match=r"must be .*, got"):
        models.restore({**models.describe(causal()), "quantized": rows})


@pytest.mark.parametrize("dtype", [3, ["float32"], DENSE])
def test_invalid_dtype_raises_error(dtype):
    with pytest.raises(InputError, match=r"`dtype` must be|the class 'Dense' is not one of"):
        models.restore({**models.describe(causal()), "dtype": dtype})


def test_unsupported_mode_is_refused_when_saved(tmp_path):
    model = causal()
    dense = model.get_layer("block_0").feed_forward.up
    dense.quantize(
        "gptq",
        config=keras.quantizers.GPTQConfig(dataset=["a"], tokenizer=lambda text: text),
    )
    with pytest.raises(InputError, match="'gptq', which cannot be saved"):
        model.save(tmp_path / "model.keras")


# Policies


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_dtype_policy_object_is_saved(policy, tmp_path):
    model = models.causal_lm(models.preset("llama-tiny"), dtype=keras.DTypePolicy(policy))
    assert models.describe(model)["dtype"] == policy
    loaded = reload_described(model, tmp_path)
    assert loaded.get_layer("block_0").dtype_policy.name == policy


def test_dtype_policy_map(tmp_path):
    def model_with(path, policy):
        policies = keras.dtype_policies.DTypePolicyMap("float32")
        policies[path] = keras.dtype_policies.get(policy)
        return models.causal_lm(models.preset("llama-tiny"), dtype=policies)

    model = model_with("token_embedding", "mixed_bfloat16")
    for reload in (reload_keras_file, reload_described):
        loaded = reload(model, tmp_path)
        np.testing.assert_array_equal(outputs_of(loaded), outputs_of(model))
        assert loaded.get_layer("token_embedding").compute_dtype == "bfloat16"
        assert loaded.get_layer("block_0").feed_forward.up.compute_dtype == "float32"
    model = model_with("block_1/feed_forward/up", "int8_from_float32")
    assert model.get_layer("block_1").feed_forward.up.quantization_mode == "int8"
    with pytest.raises(InputError, match="DTypePolicyMap"):
        model.save(tmp_path / "model.keras")


# Layers in other models


def functional(layer, *shapes, dtype="float32"):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


BLOCK = {"intermediate_dim": 12, "num_heads": 2}
LAYERS = [
    lambda: layers.FeedForward(12, gated=True),
    lambda: layers.MixtureOfExperts(3, 2, 12, num_shared_experts=1),
    lambda: layers.MultiHeadAttention(2, 4),
    lambda: layers.TransformerEncoder(**BLOCK),
    lambda: layers.TransformerDecoder(**BLOCK, position=layers.Rotary()),
    lambda: layers.TransformerDecoder(**BLOCK, num_experts=2),
]


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("make", LAYERS)
def test_quantized_layer_is_reloaded(make, mode, tmp_path):
    model = randomized(functional(make(), (None, 8)))
    x = RNG.normal(size=(2, 5, 8)).astype("float32")
    exact = np.asarray(model(x))
    model.quantize(mode)
    outputs = np.asarray(model(x))
    assert not np.array_equal(outputs, exact)
    for reload in (reload_keras_file, cloned):
        loaded = reload(model, tmp_path)
        np.testing.assert_array_equal(loaded(x), outputs)
        assert list(modes_of(loaded).values()) == list(modes_of(model).values())
    layer = model.layers[-1]
    copy = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    assert json.dumps(copy.get_config()) == json.dumps(layer.get_config())  # before it is built


def test_quantized_adapted_layer_is_reloaded_exactly(tmp_path):
    block = layers.TransformerDecoder(**BLOCK)
    model = randomized(functional(block, (None, 8)))
    model.quantize("int8")
    block.feed_forward.up.enable_lora(2)
    randomized(model)
    x = RNG.normal(size=(2, 5, 8)).astype("float32")
    outputs = np.asarray(model(x))
    np.testing.assert_array_equal(reload_keras_file(model, tmp_path)(x), outputs)


def test_description_of_unknown_layer_raises_error():
    config = models.causal_lm(models.preset("llama-tiny")).get_config()
    row = {"mode": "int8", "config": None, "lora": None}
    with pytest.raises(InputError, match="no layer 'block_9/query'"):
        models.CausalLM.from_config({**config, "quantized": {"block_9/query": row}})


def test_adapted_layer_of_the_user_is_reloaded_exactly(tmp_path):
    x = keras.Input((None, 8))
    hidden = layers.TransformerEncoder(**BLOCK)(x)
    model = randomized(keras.Model(x, keras.layers.Dense(3, name="labels")(hidden)))
    training.add_lora(model, "labels|query", rank=2, alpha=3.0, quantization="int8")
    randomized(model)
    x = RNG.normal(size=(2, 5, 8)).astype("float32")
    outputs = np.asarray(model(x))
    np.testing.assert_array_equal(reload_keras_file(model, tmp_path)(x), outputs)
