"""Test LoRA and DoRA adapters: initialization, training, merging, saving and stacking."""

import keras
import numpy as np
import pytest

from keras_llm import models, tasks, tokenizers, training
from keras_llm.errors import InputError
from keras_llm.keras_internals import adding_weights

V = 61
IDS = np.random.default_rng(0).integers(2, V, (8, 9)).astype("int32")
ALL_LAYERS = r"(query|key|value|output|up|gate|down|token_embedding)$"


def causal_lm(**changes):
    keras.utils.set_random_seed(0)
    shape = {"vocabulary_size": V, "initializer_range": 0.3, "num_layers": 1, **changes}
    return models.causal_lm(models.preset("llama-tiny", **shape))


def randomize_adapters(model, seed=0):
    """Give the adapters of a model random weights; return the model."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
    return model


def test_new_adapters_change_nothing_and_only_they_are_trained():
    model = causal_lm(use_bias=True)
    logits, before = np.asarray(model(IDS)), [np.asarray(w) for w in model.weights]
    paths = training.add_lora(model, rank=3)
    assert paths and all("attention" in path for path in paths)
    np.testing.assert_array_equal(model(IDS), logits)
    assert all("lora" in weight.path for weight in model.trainable_weights)
    assert len(model.trainable_weights) == 2 * len(paths) == 8
    frozen = [w for w in model.weights if "lora" not in w.path]
    trainer = training.LanguageModelTrainer(model)
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    history = trainer.fit(IDS[:, :-1], IDS[:, 1:], epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert len(trainer.optimizer.variables) < 20
    for weight, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_lora_matches_formula():
    model = causal_lm()
    layer = model.get_layer("block_0").feed_forward.up
    kernel = np.asarray(layer.kernel)
    assert training.add_lora(model, r"feed_forward/up$", 3, 12) == [layer.path]
    randomize_adapters(model)
    a, b = (np.asarray(w, "float64") for w in model.trainable_weights)
    x = np.random.default_rng(1).normal(size=(5, len(kernel)))
    np.testing.assert_allclose(layer(x), x @ (kernel + 12 / 3 * a @ b), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_saved_and_loaded_models_match(tmp_path, tied):
    model = causal_lm(tie_embeddings=tied)
    training.add_lora(model, ALL_LAYERS, rank=2, alpha=5.0)
    expected = np.asarray(randomize_adapters(model)(IDS))
    assert not np.allclose(expected, causal_lm(tie_embeddings=tied)(IDS), atol=0.1)
    merged = training.merge_lora(model)
    np.testing.assert_allclose(merged(IDS), expected, atol=1e-4)
    assert len(merged.weights) == len(causal_lm(tie_embeddings=tied).weights)
    assert len(merged.trainable_weights) == len(merged.weights)
    training.save_lora(model, tmp_path / "a.safetensors")
    other = causal_lm(tie_embeddings=tied)
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * other.count_params()
    training.load_lora(other, tmp_path / "a.safetensors")
    np.testing.assert_allclose(other(IDS), expected, atol=1e-4)
    merged.save_weights(tmp_path / "merged.weights.h5")
    plain = causal_lm(tie_embeddings=tied)
    plain.load_weights(tmp_path / "merged.weights.h5")
    np.testing.assert_allclose(plain(IDS), expected, atol=1e-4)
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"expected \d variables"):
        plain.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("dora", [False, True])
def test_weights_without_adapters_are_loaded_below_new_adapters(dora, tmp_path):
    """A must not become 0, as in Keras: with B = 0, neither would have a gradient."""
    base = causal_lm()
    base.get_layer("block_0").feed_forward.up.kernel.assign_add(
        np.random.default_rng(1).normal(size=base.get_layer("block_0").feed_forward.up.kernel.shape)
    )
    base.save_weights(tmp_path / "model.weights.h5")
    model = causal_lm()
    training.add_lora(model, "up$", rank=2, dora=dora)
    factor = np.asarray(randomize_adapters(model).trainable_weights[0])
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(model(IDS), base(IDS), atol=1e-4)
    np.testing.assert_array_equal(model.trainable_weights[0], factor)


def test_saved_task_contains_merged_kernels(tmp_path):
    tokenizer = tokenizers.BytePair.train(["once upon a time, there was a fox"] * 5, 280)
    model = causal_lm(vocabulary_size=280)
    training.add_lora(model, "up$", rank=2)
    expected = np.asarray(randomize_adapters(model)(IDS))
    tasks.TextGeneration(model, tokenizer).save(tmp_path / "task")
    loaded = tasks.load(tmp_path / "task").model
    assert len(loaded.trainable_weights) == len(causal_lm().weights)
    np.testing.assert_allclose(loaded(IDS), expected, atol=1e-4)


def test_adapters_of_same_layer_add_up(tmp_path):
    kernel = np.asarray(causal_lm().get_layer("block_0").feed_forward.up.kernel)
    total = np.zeros_like(kernel)
    for seed, rank in ((1, 2), (2, 3)):
        model = causal_lm()
        training.add_lora(model, "up$", rank, alpha=7.0)
        a, b = randomize_adapters(model, seed).trainable_weights
        total += 7.0 / rank * np.asarray(a) @ np.asarray(b)
        training.save_lora(model, tmp_path / f"{seed}")
    both = causal_lm()
    training.load_lora(both, tmp_path / "1", tmp_path / "2")
    merged = training.merge_lora(both).get_layer("block_0").feed_forward.up.kernel
    np.testing.assert_allclose(merged, kernel + total, atol=1e-4)


def test_adapters_of_encoders_and_heads():
    encoder = models.preset("distilbert-tiny", vocabulary_size=V, num_layers=1)
    pair = models.preset("t5-tiny", vocabulary_size=V, num_layers=1, num_decoder_layers=1)
    for model, inputs in (
        (models.text_classifier(encoder, 2, dropout=0.0), [IDS, IDS > 0]),
        (models.seq2seq(pair), [IDS, IDS]),
    ):
        before = np.asarray(model(inputs))
        training.add_lora(model, rank=2)
        np.testing.assert_array_equal(model(inputs), before)
        expected = np.asarray(randomize_adapters(model)(inputs))
        np.testing.assert_allclose(training.merge_lora(model)(inputs), expected, atol=1e-4)
    model = models.text_classifier(encoder, 2, dropout=0.0)
    head = model.layers[-1].path
    training.add_lora(model, f"{head}$", rank=2, dora=True)
    expected = np.asarray(randomize_adapters(model)([IDS, IDS > 0]))
    merged = training.merge_lora(model)([IDS, IDS > 0])
    np.testing.assert_allclose(merged, expected, atol=1e-4)


def test_dora_matches_formula():
    model = causal_lm()
    layer = model.get_layer("block_0").feed_forward.up
    kernel, logits = np.asarray(layer.kernel), np.asarray(model(IDS))
    assert training.add_lora(model, r"feed_forward/up$", 3, 12, dora=True) == [layer.path]
    np.testing.assert_allclose(model(IDS), logits, atol=1e-4)
    assert len(model.trainable_weights) == 3
    randomize_adapters(model)
    a, b, magnitude = (np.asarray(w, "float64") for w in model.trainable_weights)
    v = kernel + 12 / 3 * a @ b
    x = np.random.default_rng(1).normal(size=(5, len(kernel)))
    expected = x @ (magnitude * v / np.linalg.norm(v, axis=0))
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_weight_decay_skips_magnitudes():
    model = causal_lm()
    training.add_lora(model, r"feed_forward/up$", rank=2, dora=True)
    before = [np.asarray(weight) for weight in model.trainable_weights]
    optimizer = training.AdamW(0.1, weight_decay=0.5)
    optimizer.apply([weight * 0 for weight in model.trainable_weights], model.trainable_weights)
    factors = {"lora_kernel_a": 0.95, "lora_kernel_b": 0.95, "lora_magnitude": 1.0}
    for weight, old in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_allclose(weight, old * factors.pop(weight.name), rtol=1e-5)
    assert not factors


def test_dora_training_saving_and_merging(tmp_path):
    model = causal_lm()
    frozen = np.asarray(model.get_layer("block_0").feed_forward.down.kernel)
    training.add_lora(model, "(query|down)$", rank=2, dora=True)
    trainer = training.LanguageModelTrainer(model)
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    history = trainer.fit(IDS[:, :-1], IDS[:, 1:], epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    layer = model.get_layer("block_0").feed_forward.down
    assert np.abs(layer.magnitude - np.linalg.norm(frozen, axis=0)).max() > 1e-3
    np.testing.assert_array_equal(layer._kernel, frozen)
    expected = np.asarray(model(IDS))
    np.testing.assert_allclose(training.merge_lora(model)(IDS), expected, atol=1e-4)
    training.save_lora(model, tmp_path / "a")
    other = causal_lm()
    training.load_lora(other, tmp_path / "a")
    np.testing.assert_allclose(other(IDS), expected, atol=1e-4)
    with pytest.raises(InputError, match="DoRA adapters, which cannot be added"):
        training.load_lora(causal_lm(), tmp_path / "a", tmp_path / "a")


def relative_difference(actual, expected):
    """Return the mean difference, in standard deviations."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return abs(actual - expected).mean() / expected.std()


@pytest.mark.parametrize("mode, tolerance", [("int8", 0.03), ("int4", 0.3)])
def test_adapters_of_quantized_kernels_fit_original_model(tmp_path, mode, tolerance):
    model = causal_lm()
    logits = np.asarray(model(IDS))
    training.add_lora(model, "(query|up)$", rank=2, quantization=mode)
    assert {str(model.get_layer("block_0").feed_forward.up._kernel.dtype)} == {"int8"}
    assert 0 < relative_difference(model(IDS), logits) < tolerance
    trainer = training.LanguageModelTrainer(model)
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False, run_eagerly=mode == "int8")
    history = trainer.fit(IDS[:, :-1], IDS[:, 1:], epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    with pytest.raises(InputError, match="quantized"):
        training.merge_lora(model)
    training.save_lora(model, tmp_path / "a")
    base = causal_lm()
    training.load_lora(base, tmp_path / "a")
    merged = training.merge_lora(base)
    assert relative_difference(merged(IDS), model(IDS)) < tolerance


def test_invalid_arguments_raise_error(tmp_path):
    model = causal_lm()
    for changes, message in (
        ({"rank": 0}, "rank"),
        ({"alpha": -1.0}, "alpha"),
        ({"layers": "nothing"}, "block_0/self_attention/query"),
        ({"layers": "("}, "regular expression"),
        ({"layers": None}, "`layers` must be a regular expression, got None"),
        ({"quantization": "int2"}, "quantization"),
        ({"quantization": "int8", "dora": True}, "dora.*quantization"),
        ({"layers": ALL_LAYERS, "dora": True}, "dora.*token_embedding"),
    ):
        with pytest.raises(InputError, match=message):
            training.add_lora(model, **changes)
    for function in (training.merge_lora, lambda m: training.save_lora(m, tmp_path / "x")):
        with pytest.raises(InputError, match="no adapters"):
            function(model)
    training.add_lora(model)
    with pytest.raises(InputError, match="already"):
        training.add_lora(model)
    training.save_lora(model, tmp_path / "a")
    with pytest.raises(InputError, match="exists"):
        training.save_lora(model, tmp_path / "a")
    (tmp_path / "bad").write_text("nothing")
    narrow = causal_lm(hidden_dim=32, num_heads=2, num_key_value_heads=2)
    for other, path, message in (
        (causal_lm(), "none", "does not exist"),
        (causal_lm(), "bad", "not a file from save_lora"),
        (narrow, "a", r"block_0/self_attention/.*kernel"),
        (models.seq2seq(models.preset("t5-tiny")), "a", "no layer 'block_0/self_attention"),
    ):
        with pytest.raises(InputError, match=message):
            training.load_lora(other, tmp_path / path)


def test_layer_is_locked_after_an_error_in_adding_weights():
    layer = causal_lm().get_layer("block_0").feed_forward.up
    with pytest.raises(LookupError), adding_weights(layer):
        raise LookupError
    with pytest.raises(ValueError, match="cannot add new"):
        layer.add_weight(shape=(1,))
