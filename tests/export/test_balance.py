"""Balancing alone: nothing changes in float32, and 8 bits lose less."""

import shutil

import keras
import numpy as np
import pytest

from keras_llm import models, tasks, tokenizers
from keras_llm.export import device_model, rewrite
from keras_llm.export.balance import balance
from keras_llm.export.decoder_steps import DecoderSteps
from keras_llm.export.quantize import QuantizationRule, quantize
from keras_llm.export.runtime import InterpreterRuntime

LOUD = 600.0
TABLES = r"/embedding_\d+\b|/head\b"


def write(folder, preset):
    """Write a float32 file of a model with a loud channel that is read quietly, and the same
    balanced; the file's manifest."""
    tok = tokenizers.BytePair.train(["once upon a time there was"] * 9, 300)
    keras.utils.set_random_seed(3)
    config = models.preset(
        preset, vocabulary_size=300, initializer_range=0.1, max_length=64, num_layers=2
    )
    model = models.causal_lm(config)
    for variable in model.variables:
        values = np.array(variable)
        part, name = variable.path.split("/")[-2:]
        if part == "token_embedding":
            values[:, 5] *= LOUD
        elif part in ("query", "key", "value", "up", "gate") and name == "kernel":
            values[5] /= LOUD
        elif part == "final_norm" and name != "beta":
            values[5] /= LOUD**2  # for the tied head
        variable.assign(values)
    plan = device_model.plan("litert", tasks.TextGeneration(model, tok), None, [16], 48, None)
    device_model.write(plan, folder / "float.tflite")
    rows = [tok.encode("once upon a time there was"), tok.encode("time was there upon")]
    shutil.copy(folder / "float.tflite", folder / "balanced.tflite")
    balance(folder / "balanced.tflite", rows, plan.manifest)
    return plan.manifest


def logits(path, manifest):
    decoder = DecoderSteps(InterpreterRuntime(path, 0, None, None, True), manifest)
    ids = np.random.default_rng(0).integers(3, 300, 40).tolist()
    decoder.read(ids[:30])
    return np.array([decoder.step(token, 30 + i) for i, token in enumerate(ids[30:])])


@pytest.mark.parametrize("preset", ["llama-tiny", "gpt-tiny"])
def test_nothing_changes_in_float32(tmp_path, preset):
    manifest = write(tmp_path, preset)
    files = [tmp_path / "float.tflite", tmp_path / "balanced.tflite"]
    assert files[0].read_bytes() != files[1].read_bytes()
    expected, found = (logits(path, manifest) for path in files)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_eight_bits_lose_less(tmp_path):
    manifest = write(tmp_path, "llama-tiny")
    rules = [QuantizationRule(), QuantizationRule(layers=TABLES, bits=32)]
    expected, errors = logits(tmp_path / "float.tflite", manifest), {}
    for name in ("float", "balanced"):
        out = str(tmp_path / f"{name}_int8.tflite")
        rewrite.name_tables(tmp_path / f"{name}.tflite")
        quantize(str(tmp_path / f"{name}.tflite"), out, rules)
        errors[name] = np.sqrt(np.mean((logits(out, manifest) - expected) ** 2))
    assert errors["balanced"] < 0.7 * errors["float"], errors
