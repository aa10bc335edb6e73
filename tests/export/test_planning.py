"""Test export plans, and that exports without enough memory raise an error."""

import pytest

from keras_llm import export, models
from keras_llm.errors import ExportError, InputError
from keras_llm.export import planning


@pytest.mark.parametrize("quantization", [None, "float16", "int8", "int4"])
def test_file_size(request, tmp_path, quantization):
    """The estimate is within the graph's size and 10 % of the weights."""
    # Quantized recipes differ by matrix and need a model with embeddings and a head.
    is_quantized = quantization in ("int8", "int4")
    task = request.getfixturevalue("task" if is_quantized else "embedder")
    options = {"prefill_lengths": [16]} if is_quantized else {}
    plan = export.plan_export(task, "litert", quantization)
    report = export.litert(task, tmp_path / "x.tflite", quantization, **options)
    weights = report["bytes"]["model"] - report["bytes"]["graph"]
    assert plan["file_bytes"] == pytest.approx(weights, rel=0.1)
    assert plan["fits"] and plan["memory_bytes"] > plan["model_bytes"] > 0


def test_plan_config_without_weights():
    plans = {
        q: export.plan_export(models.preset("gemma3-4b"), "litert_lm", q)
        for q in ("int4", "int8", None)
    }
    parameters = 3_880_263_168
    assert plans["int4"]["model_bytes"] == 2 * parameters  # published in bfloat16
    assert plans[None]["file_bytes"] == 4 * parameters
    assert 1.0 < plans["int8"]["file_bytes"] / parameters < 1.1
    assert plans["int4"]["file_bytes"] < plans["int8"]["file_bytes"]
    memory = [plans[q]["memory_bytes"] for q in ("int4", "int8", None)]
    assert memory == sorted(memory)


def test_encoder_and_decoder_layers_take_time():
    seconds = [
        export.plan_export(models.preset("transformer-tiny", **{name: 40}), "litert")["seconds"]
        for name in ("num_layers", "num_decoder_layers")
    ]
    assert min(seconds) > 40


@pytest.mark.parametrize("write", ["litert", "litert_lm", "saved_model"])
def test_export_without_enough_memory_raises_error(task, tmp_path, monkeypatch, write):
    monkeypatch.setattr(planning, "available_memory", lambda: 500_000_000)
    path = tmp_path / {"litert": "x.tflite", "litert_lm": "x.litertlm"}.get(write, "x")
    with pytest.raises(
        ExportError,
        match=rf"^{write}: .* in addition to the model, but only 0\.5 GB are",
    ):
        getattr(export, write)(task, path)
    assert list(tmp_path.iterdir()) == []


def test_available_memory():
    assert 10**8 < planning.available_memory() < 10**13


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"target": "onnx"}, "`target`"),
        ({"target": "saved_model", "quantization": "int8"}, "`quantization`"),
        ({"model": "gpt2"}, "`model`"),
        ({"quantization": "int5"}, "int8_weight_only"),
    ],
)
def test_invalid_arguments_raise_error(arguments, message):
    arguments = {"model": models.preset("llama-tiny"), **arguments}
    with pytest.raises(InputError, match=message):
        export.plan_export(**arguments)
