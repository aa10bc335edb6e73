"""The parts of a memory plan, against models that are really made."""

import keras
import numpy as np
import pytest

from keras_llm import models, training
from keras_llm.errors import InputError

CONFIG = models.preset("llama-tiny", num_layers=2, dropout=0.1)


def of(variables):
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
def test_weights_and_the_state_of_the_optimizer_are_exact(optimizer, dtype):
    plan = training.plan_memory(CONFIG, 4, 32, optimizer, dtype=dtype)
    model = models.causal_lm(CONFIG, dtype=dtype)
    made = keras.optimizers.get(optimizer)
    made = type(made).from_config(made.get_config())
    made.build(model.trainable_variables)
    assert plan["weights"] == of(model.variables)
    assert plan["gradients"] == of(model.trainable_variables)
    assert plan["optimizer"] == of(made.variables)
    assert plan["total"] == sum(value for name, value in plan.items() if name != "total")


def test_activations_grow_with_tokens_and_shrink_by_rematerialization():
    config = models.preset("llama-tiny", num_layers=12)
    plain, doubled = (training.plan_memory(config, size, 32)["activations"] for size in (4, 8))
    assert doubled == 2 * plain
    remat = training.plan_memory(config, 4, 32, remat=True)["activations"]
    block = plain // 12
    assert remat == block + 12 * 4 * 4 * 32 * config.hidden_dim
    half = training.plan_memory(config, 4, 32, dtype="mixed_bfloat16")["activations"]
    assert plain // 2 < half < plain


def test_what_does_not_fit_is_named():
    for arguments, words in (
        ((models.preset("distilbert-tiny"), 4, 32), "config"),
        ((CONFIG, 0, 32), "batch_size"),
        ((CONFIG, 4, CONFIG.max_length + 1), "sequence_length.*max_length"),
        ((CONFIG, 4, 32, "nothing"), "optimizer"),
        ((CONFIG, 4, 32, "adafactor"), "optimizer.*Adafactor"),
    ):
        with pytest.raises(InputError, match=words):
            training.plan_memory(*arguments)
