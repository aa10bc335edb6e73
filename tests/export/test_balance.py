"""Balancing alone: nothing changes in float32, and 8 bits lose less."""

import keras
import numpy as np
import pytest

from keras_llm import models, tasks, tokenizers
from keras_llm.export import device_model, quantization, weights
from keras_llm.export.balance import balance
from keras_llm.export.calibration import Calibration, groups_of
from keras_llm.export.decoder_steps import DecoderSteps
from keras_llm.export.progress import Progress
from keras_llm.export.quantization import QuantizationRule
from keras_llm.export.runtime import InterpreterRuntime

LOUD = 600.0
TABLES = r"/embedding_\d+\b|/head\b"


def task_of(preset):
    """A task with a loud channel that is read quietly."""
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
    return tasks.TextGeneration(model, tok)


def write(folder, preset, rules):
    """Write a file of such a task as it is, and the same balanced; the file's manifest."""
    task = task_of(preset)
    plan = device_model.plan("litert", task, None, [16], 48, None)
    rows = [task.tokenizer.encode(text) for text in ("once upon a time", "time was there upon")]
    for name in ("float", "balanced"):
        with device_model.lowering_child() as child:
            model, _ = device_model.lower(plan, child, Progress("x", 1))
        if name == "balanced":
            balance(model, groups_of(model), Calibration(*plan.traced, plan.manifest, rows))
        quantization.apply(model, rules)
        weights.write(model, folder / f"{name}.tflite")
    return plan.manifest


def logits(path, manifest):
    decoder = DecoderSteps(InterpreterRuntime(path, 0, None, None, True), manifest)
    ids = np.random.default_rng(0).integers(3, 300, 40).tolist()
    decoder.read(ids[:30])
    return np.array([decoder.step(token, 30 + i) for i, token in enumerate(ids[30:])])


@pytest.mark.parametrize("preset", ["llama-tiny", "gpt-tiny"])
def test_nothing_changes_in_float32(tmp_path, preset):
    manifest = write(tmp_path, preset, [QuantizationRule(bits=32)])
    files = [tmp_path / "float.tflite", tmp_path / "balanced.tflite"]
    assert files[0].read_bytes() != files[1].read_bytes()
    expected, found = (logits(path, manifest) for path in files)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_eight_bits_lose_less(tmp_path):
    manifest = write(tmp_path, "llama-tiny", [QuantizationRule(bits=32)])
    expected = logits(tmp_path / "float.tflite", manifest)
    write(tmp_path, "llama-tiny", [QuantizationRule(), QuantizationRule(layers=TABLES, bits=32)])
    errors = {}
    for name in ("float", "balanced"):
        found = logits(tmp_path / f"{name}.tflite", manifest)
        errors[name] = np.sqrt(np.mean((found - expected) ** 2))
    assert errors["balanced"] < 0.7 * errors["float"], errors
