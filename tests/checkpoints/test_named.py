"""Fill models that are composed from layers with tensors by name."""

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import layers

from keras_llm import checkpoints, models, tasks, tokenizers
from keras_llm import layers as own_layers
from keras_llm.errors import InputError

CONFIG = models.preset("llama-tiny", vocabulary_size=300, num_layers=2, num_key_value_heads=4)
PROJECTIONS = {"query": "q", "key": "k", "value": "v"}


def composed():
    """Return the decoder of `CONFIG`, composed from layers of Keras and this library."""
    token_ids = keras.Input((None,), dtype="int32")
    embedding = layers.ReversibleEmbedding(300, CONFIG.hidden_dim, name="tokens")
    x = embedding(token_ids)
    for i in range(CONFIG.num_layers):
        h = layers.RMSNormalization(epsilon=CONFIG.norm_epsilon, name=f"norm_{i}")(x)
        attention = own_layers.MultiHeadAttention(
            CONFIG.num_heads,
            CONFIG.head_dim,
            position=CONFIG.position,
            use_bias=False,
            name=f"attention_{i}",
        )
        x = x + attention(h, use_causal_mask=True)
        h = layers.RMSNormalization(epsilon=CONFIG.norm_epsilon, name=f"norm_after_{i}")(x)
        gate, up = (
            layers.Dense(CONFIG.intermediate_dim, activation, use_bias=False, name=f"{name}_{i}")(h)
            for name, activation in (("gate", "silu"), ("up", None))
        )
        x = x + layers.Dense(CONFIG.hidden_dim, use_bias=False, name=f"down_{i}")(gate * up)
    x = layers.RMSNormalization(epsilon=CONFIG.norm_epsilon, name="last_norm")(x)
    return keras.Model(token_ids, embedding(x, reverse=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in the format of Hugging Face, and the model that it was written from."""
    tokenizer = tokenizers.BytePair.train(["a fox met a hen"] * 9, 300)
    model = models.causal_lm(CONFIG)
    for weight in model.weights:
        weight.assign(keras.random.normal(weight.shape, stddev=0.2))
    path = tmp_path_factory.mktemp("named") / "hugging_face"
    checkpoints.to_hugging_face(tasks.TextGeneration(model, tokenizer), path)
    return path, model


def mapping():
    layer = "model.layers.{i}."
    kernels = {
        **{f"attention_{{i}}/{ours}": f"self_attn.{q}_proj" for ours, q in PROJECTIONS.items()},
        "attention_{i}/output": "self_attn.o_proj",
        **{f"{name}_{{i}}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    }
    return {
        "tokens/embeddings": "model.embed_tokens.weight",
        "last_norm/scale": "model.norm.weight",
        "norm_{i}/scale": f"{layer}input_layernorm.weight",
        "norm_after_{i}/scale": f"{layer}post_attention_layernorm.weight",
        **{
            f"{path}/kernel": (f"{layer}{name}.weight", np.transpose)
            for path, name in kernels.items()
        },
    }


def test_composed_model_reads_a_folder_of_hugging_face(folder):
    path, expected = folder
    model = composed()
    assert checkpoints.load_tensors(model, mapping(), path) == []
    ids = np.arange(3, 15)[None]
    np.testing.assert_allclose(model(ids), expected(ids), atol=1e-4)
    again = composed()
    checkpoints.load_tensors(again, mapping(), path / "model.safetensors")
    np.testing.assert_array_equal(again(ids), model(ids))


def dense():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(3, name="up")(inputs))
    return model, [np.array(w) for w in model.weights]


def test_arrays_several_tensors_and_partial_mappings(tmp_path):
    model, _ = dense()
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.ones((1, 2), "f4"), "b": np.zeros((2, 2), "f4")}, file)
    joined = (("a", "b"), lambda a, b: np.concatenate([a, b]).T)
    assert checkpoints.load_tensors(model, {"up/kernel": joined}, file, partial=True) == []
    np.testing.assert_array_equal(model.weights[0], [[1, 0, 0], [1, 0, 0]])
    arrays = {"up/kernel": np.zeros((2, 3)), "up/bias": np.arange(3)}
    assert checkpoints.load_tensors(model, arrays) == []
    np.testing.assert_array_equal(model.weights[1], [0, 1, 2])


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"up/kernel": "k"}, r"no entry for the weight 'up/bias' \(1 in all\).*partial=True"),
        ({"down/kernel": "k"}, r"no weight has the path 'down/kernel'.*up/kernel, up/bias"),
        ({"up/kernel": "k", "up/bias": "c"}, "tensor 'c' for 'up/bias' is missing"),
        ({"up/kernel": "k", "up/bias": "k"}, r"'up/bias' has the shape \(3,\).*\(2, 3\)"),
        ({"up/kernel": ("k", np.transpose), "up/bias": "b"}, r"'up/kernel' .* \(3, 2\)"),
        ({"up/kernel": ("k", len), "up/bias": "b"}, r"'up/kernel' has the shape \(2, 3\)"),
        ({"up/kernel": ("k", np.linalg.inv), "up/bias": "b"}, "function for .*'up/kernel' failed"),
        ({"up/kernel": ("k", "b"), "up/bias": "b"}, "needs a function for 2 tensors"),
        ({"up/kernel": 3, "up/bias": "b"}, "'up/kernel' must be an array, a name"),
        ({"up/kernel": "k{j}", "up/bias": "b"}, "only the braces of the path"),
        ({"up_{0}/kernel": "k", "up/bias": "b"}, "must be a name, such as {i}"),
    ],
)
def test_wrong_mappings_change_nothing(entries, message):
    model, before = dense()
    tensors = {"k": np.ones((2, 3)), "b": np.ones(3)}
    with pytest.raises(InputError, match=message):
        checkpoints.load_tensors(model, entries, tensors)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_files_that_cannot_be_read(tmp_path):
    model, _ = dense()
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "x.safetensors", tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            checkpoints.load_tensors(model, {"up/kernel": "k", "up/bias": "b"}, path)


def test_a_name_in_braces_stands_for_one_number():
    inputs = x = keras.Input((2,))
    for i in range(3):
        x = layers.Dense(2, use_bias=False, name=f"block_{i}")(x)
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="block_1_2")(x))
    tensors = {f"{i}": np.full((2, 2), i) for i in range(3)}
    mapping = {"block_{i}/kernel": "{i}"}
    checkpoints.load_tensors(model, mapping, tensors, partial=True)
    assert [float(w[0, 0]) for w in model.weights[:3]] == [0, 1, 2]
    with pytest.raises(InputError, match=r"no weight has the path 'block_\{i\}_\{i\}/kernel'"):
        checkpoints.load_tensors(model, {"block_{i}_{i}/kernel": "{i}"}, tensors)
