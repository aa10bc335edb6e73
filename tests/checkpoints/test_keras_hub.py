"""Test conversion from and to KerasHub's models: the logits are equal."""

import dataclasses

import keras_hub
import numpy as np
import pytest

import keras_llm
from keras_llm import models, tokenizers, training
from keras_llm.checkpoints import from_keras_hub, to_keras_hub
from keras_llm.errors import InputError
from keras_llm.layers import Rotary

LLAMA = {
    "vocabulary_size": 80,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 48,
}
GPT2 = {
    "vocabulary_size": 80,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "max_sequence_length": 20,
}
LLAMA3 = {
    "rope_max_wavelength": 5e5,
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
BACKBONES = {
    "gpt2": lambda: keras_hub.models.GPT2Backbone(**GPT2),
    "llama": lambda: keras_hub.models.LlamaBackbone(**LLAMA),
    "llama, tied": lambda: keras_hub.models.LlamaBackbone(**LLAMA, tie_word_embeddings=True),
    "llama, epsilon": lambda: keras_hub.models.LlamaBackbone(**LLAMA, layer_norm_epsilon=0.1),
    "llama, llama3": lambda: keras_hub.models.LlamaBackbone(**LLAMA, **LLAMA3),
}
TOKENS = np.random.default_rng(0).integers(0, 80, (2, 15)).astype("int32")


def hub_logits(backbone):
    hidden = backbone({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)})
    return np.asarray(backbone.token_embedding(hidden, reverse=True))


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_match_in_both_directions(name, randomize):
    backbone = randomize(BACKBONES[name]())
    ours = from_keras_hub(backbone)
    expected = hub_logits(backbone)
    np.testing.assert_allclose(ours.predict(TOKENS, verbose=0), expected, rtol=1e-4, atol=1e-4)
    exported = to_keras_hub(ours)
    assert type(exported) is type(backbone)
    for first, second in zip(backbone.weights, exported.weights, strict=True):
        assert first.path == second.path
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    np.testing.assert_array_equal(hub_logits(exported), expected)


def test_tasks_in_both_directions(randomize):
    backbone = randomize(BACKBONES["gpt2"]())
    ours = from_keras_hub(keras_hub.models.GPT2CausalLM(backbone, preprocessor=None))
    assert ours.config.max_length == 20
    tok = tokenizers.SentencePiece.train(["guten tag, good day"] * 9, 275, "bpe")
    config = models.preset("llama-tiny", vocabulary_size=275)
    task = keras_llm.TextGeneration(randomize(models.causal_lm(config)), tok)
    imported = from_keras_hub(to_keras_hub(task), max_length=128)
    assert dataclasses.replace(imported.config, initializer_range=0.05) == config
    np.testing.assert_array_equal(
        imported.predict(TOKENS, verbose=0), task.model.predict(TOKENS, verbose=0)
    )


def test_adapters_are_merged(randomize):
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=80, num_layers=1))
    training.add_lora(model, rank=2)
    randomize(model)
    expected = model.predict(TOKENS, verbose=0)
    np.testing.assert_allclose(hub_logits(to_keras_hub(model)), expected, rtol=1e-3, atol=1e-3)


def test_quantized_model_raises_error():
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=80, num_layers=1))
    model.get_layer("block_0").feed_forward.up.quantize("int8")
    with pytest.raises(InputError, match=r"no weight for .*up/kernel_scale.* quantized"):
        to_keras_hub(model)


def test_bfloat16_is_kept(randomize):
    backbone = keras_hub.models.LlamaBackbone(**LLAMA, dtype="bfloat16")
    ours = from_keras_hub(randomize(backbone), dtype="bfloat16")
    assert {w.dtype for w in ours.weights} == {"bfloat16"}
    exported = to_keras_hub(ours)
    for first, second in zip(backbone.weights, exported.weights, strict=True):
        assert first.dtype == second.dtype == "bfloat16"
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_invalid_arguments_raise_error():
    with pytest.raises(InputError, match=r"GPT2Backbone, LlamaBackbone, .*, got .*str"):
        from_keras_hub("llama")
    with pytest.raises(InputError, match=r"`max_length` must be 20 for this GPT2Backbone, got 30"):
        from_keras_hub(BACKBONES["gpt2"](), max_length=30)
    with pytest.raises(InputError, match=r"`rope_position_scaling_factor` is 2.0"):
        from_keras_hub(keras_hub.models.LlamaBackbone(**LLAMA, rope_position_scaling_factor=2.0))
    with pytest.raises(InputError, match=r"no KerasHub backbone"):
        to_keras_hub(models.causal_lm(models.preset("qwen3-tiny")))
    with pytest.raises(InputError, match=r"no KerasHub backbone"):
        to_keras_hub(models.causal_lm(models.preset("llama-tiny", position=Rotary(scaling=2.0))))
    with pytest.raises(InputError, match=r"must have a model from models.causal_lm"):
        to_keras_hub(models.encoder(models.preset("bert-tiny")))
