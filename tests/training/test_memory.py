"""Compare the parts of a memory plan with built models."""

import keras
import numpy as np
import pytest

from keras_llm import models, training
from keras_llm.errors import InputError

CONFIG = models.preset("llama-tiny", num_layers=2, dropout=0.1)


def num_bytes(variables):
    return sum(np.asarray(v).nbytes for v in variables)


@pytest.mark.parametrize(
    "optimizer, dtype",
    [
        ("adamw", None),
        (training.Lion(1e-3, use_ema=True), "mixed_bfloat16"),
        (training.Muon(gradient_accumulation_steps=2), "bfloat16"),
        (training.AdamW(state_bits=8, use_ema=True), None),
    ],
)
def test_weights_gradients_and_optimizer_state_are_exact(optimizer, dtype):
    plan = training.plan_memory(CONFIG, 4, 32, optimizer, dtype=dtype)
    model = models.causal_lm(CONFIG, dtype=dtype)
    built = keras.optimizers.get(optimizer)
    built = type(built).from_config(built.get_config())
    built.build(model.trainable_variables)
    assert plan["weights"] == num_bytes(model.variables)
    assert plan["gradients"] == num_bytes(model.trainable_variables)
    assert plan["optimizer"] == num_bytes(built.variables)
    assert plan["total"] == sum(value for name, value in plan.items() if name != "total")


def test_activations_scale_with_tokens_and_rematerialization():
    config = models.preset("llama-tiny", num_layers=12)
    plain, doubled = (training.plan_memory(config, size, 32)["activations"] for size in (4, 8))
    assert doubled == 2 * plain
    remat = training.plan_memory(config, 4, 32, remat=True)["activations"]
    block = plain // 12
    assert remat == block + 12 * 4 * 4 * 32 * config.hidden_dim
    half = training.plan_memory(config, 4, 32, dtype="mixed_bfloat16")["activations"]
    assert plain // 2 < half < plain


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", ["llama-tiny", "gpt3-tiny"])
def test_plan_of_a_composed_model_is_near_that_of_its_config(name, remat):
    config = models.preset(name)
    model = models.causal_lm(config)
    composed = models.as_causal_lm(keras.Model(model.inputs, model.outputs))
    exact = training.plan_memory(config, 8, 64, remat=remat)
    plan = training.plan_memory(composed, 8, 64, remat=remat)
    for part in ("weights", "optimizer", "gradients", "loss"):
        assert plan[part] == exact[part]
    assert 0.9 < plan["activations"] / exact["activations"] < 1.3
    summary, expected = models.summarize(composed), models.summarize(model)
    assert summary["flops_per_token"] == expected["flops_per_token"]


def test_plan_of_layers_of_keras():
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(40, 16)(token_ids)
    x = keras.layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    x = keras.layers.GRU(16, return_sequences=True)(x)
    model = models.as_causal_lm(keras.Model(token_ids, keras.layers.Dense(40)(x)))
    small, large = (training.plan_memory(model, size, 32) for size in (2, 4))
    assert large["activations"] == 2 * small["activations"]
    assert small["activations"] > 2 * 32 * (5 * 16 * 4 + 2 * 32 * 8)  # projections and scores
    assert models.summarize(model)["flops_per_token"] == 2 * (4 * 256 + 2 * 48 * 16 + 640)


def test_invalid_arguments_raise_error():
    for arguments, message in (
        ((models.preset("distilbert-tiny"), 4, 32), "config"),
        ((CONFIG, 0, 32), "batch_size"),
        ((CONFIG, 4, CONFIG.max_length + 1), "sequence_length.*max_length"),
        ((models.causal_lm(CONFIG), 4, 32), "config.*as_causal_lm"),
        ((CONFIG, 4, 32, "nothing"), "optimizer"),
        ((CONFIG, 4, 32, "adafactor"), "optimizer.*Adafactor"),
    ):
        with pytest.raises(InputError, match=message):
            training.plan_memory(*arguments)
