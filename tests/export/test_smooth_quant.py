"""Test SmoothQuant: float32 outputs do not change, and 8-bit errors decrease."""

import functools

import keras
import numpy as np
import pytest

from keras_llm import models, tasks, tokenizers
from keras_llm.export.litert import conversion, weights
from keras_llm.export.litert.lowering import flatbuffer
from keras_llm.export.litert.quantization.calibration import Calibration, groups_of
from keras_llm.export.litert.quantization.rounding import apply
from keras_llm.export.litert.quantization.rules import QuantizationRule
from keras_llm.export.litert.quantization.smooth_quant import balance
from keras_llm.export.litert.runtime.backends import InterpreterRuntime
from keras_llm.export.litert.runtime.decoder import DecoderSteps
from keras_llm.export.progress import Progress

OUTLIER_FACTOR = 600.0
TABLES = r"/embedding_\d+\b|/head\b"


def task_with_outlier_channel(preset):
    """Return a task with an outlier channel in the embeddings, and small kernels that read it."""
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
            values[:, 5] *= OUTLIER_FACTOR
        elif part in ("query", "key", "value", "up", "gate") and name == "kernel":
            values[5] /= OUTLIER_FACTOR
        elif part == "final_norm" and name != "beta":
            values[5] /= OUTLIER_FACTOR**2  # for the tied output head
        variable.assign(values)
    return tasks.TextGeneration(model, tok)


class LoweredTask:
    """A task with an outlier channel, whose graphs are lowered once for several files.

    Attributes:
        manifest: dict, the files' manifest.
    """

    def __init__(self, preset):
        task = task_with_outlier_channel(preset)
        self._plan = conversion.plan("litert", task, None, [16], 48, None)
        self.manifest = self._plan.manifest
        texts = ("once upon a time", "time was there upon")
        self._rows = [task.tokenizer.encode(text) for text in texts]
        build = flatbuffer.Model
        with pytest.MonkeyPatch.context() as patch, conversion.lowering_child() as child:
            # Writing consumes a model, so keep what is needed to build another one.
            patch.setattr(flatbuffer, "Model", lambda *a, **k: functools.partial(build, *a, **k))
            self._model, _ = conversion.lower(self._plan, child, Progress("x", 1))

    def write(self, folder, rules):
        """Write a file of the task unchanged and one balanced; return their paths."""
        paths = [folder / "float.tflite", folder / "balanced.tflite"]
        for path in paths:
            model = self._model()
            if path.stem == "balanced":
                calibration = Calibration(*self._plan.traced, self.manifest, self._rows)
                balance(model, groups_of(model), calibration)
            apply(model, rules)
            weights.write(model, path)
        return paths


@pytest.fixture(scope="module")
def float32_files(tmp_path_factory):
    """Return a function from a preset to its `LoweredTask` and the paths of its float32 files."""

    @functools.cache
    def write_preset(preset):
        lowered = LoweredTask(preset)
        folder = tmp_path_factory.mktemp(preset)
        return lowered, lowered.write(folder, [QuantizationRule(bits=32)])

    return write_preset


def decode_logits(path, manifest):
    decoder = DecoderSteps(InterpreterRuntime(path, 0, None, None, True), manifest)
    ids = np.random.default_rng(0).integers(3, 300, 40).tolist()
    decoder.read(ids[:30])
    return np.array([decoder.step(token, 30 + i) for i, token in enumerate(ids[30:])])


@pytest.mark.parametrize("preset", ["llama-tiny", "gpt-tiny"])
def test_float32_outputs_do_not_change(float32_files, preset):
    lowered, files = float32_files(preset)
    assert files[0].read_bytes() != files[1].read_bytes()
    expected, balanced = (decode_logits(path, lowered.manifest) for path in files)
    np.testing.assert_allclose(balanced, expected, atol=1e-4 * np.abs(expected).max())


def test_8_bit_errors_decrease(float32_files, tmp_path):
    lowered, (float32_path, _) = float32_files("llama-tiny")
    expected = decode_logits(float32_path, lowered.manifest)
    rules = [QuantizationRule(), QuantizationRule(layers=TABLES, bits=32)]
    errors = {}
    for path in lowered.write(tmp_path, rules):
        actual = decode_logits(path, lowered.manifest)
        errors[path.stem] = np.sqrt(np.mean((actual - expected) ** 2))
    assert errors["balanced"] < 0.7 * errors["float"], errors
