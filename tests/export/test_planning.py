"""What an export takes is told beforehand, and one that does not fit is refused."""

import pytest

from keras_llm import export, models
from keras_llm.errors import ExportError, InputError
from keras_llm.export import planning


@pytest.mark.parametrize("quantization", [None, "float16", "int8", "int4"])
def test_the_size_of_the_file(request, tmp_path, quantization):
    """Within the graph and a tenth of the weights."""
    # Where each matrix has its own bits, of a model that has a table and a head besides.
    by_matrix = quantization in ("int8", "int4")
    task = request.getfixturevalue("task" if by_matrix else "embedder")
    options = {"prefill_lengths": [16]} if by_matrix else {}
    plan = export.plan_export(task, "litert", quantization)
    report = export.litert(task, tmp_path / "x.tflite", quantization, **options)
    weights = report["bytes"]["model"] - report["bytes"]["graph"]
    assert plan["file_bytes"] == pytest.approx(weights, rel=0.1)
    assert plan["fits"] and plan["memory_bytes"] > plan["model_bytes"] > 0


def test_a_config_is_planned_without_its_weights():
    plans = {
        q: export.plan_export(models.preset("gemma3-4b"), "litert_lm", q)
        for q in ("int4", "int8", None)
    }
    parameters = 3_880_263_168
    assert plans["int4"]["model_bytes"] == 2 * parameters  # as published, in bfloat16
    assert plans[None]["file_bytes"] == 4 * parameters
    assert 1.0 < plans["int8"]["file_bytes"] / parameters < 1.1
    assert plans["int4"]["file_bytes"] < plans["int8"]["file_bytes"]
    memory = [plans[q]["memory_bytes"] for q in ("int4", "int8", None)]
    assert memory == sorted(memory)


def test_both_stacks_of_an_encoder_decoder_take_time():
    seconds = [
        export.plan_export(models.preset("transformer-tiny", **{name: 40}), "litert")["seconds"]
        for name in ("num_layers", "num_decoder_layers")
    ]
    assert min(seconds) > 40


@pytest.mark.parametrize("write", ["litert", "litert_lm", "saved_model"])
def test_an_export_without_room_is_refused(task, tmp_path, monkeypatch, write):
    monkeypatch.setattr(planning, "available_memory", lambda: 500_000_000)
    path = tmp_path / {"litert": "x.tflite", "litert_lm": "x.litertlm"}.get(write, "x")
    with pytest.raises(
        ExportError,
        match=rf"^{write}: .* in addition to the model, but only 0\.5 GB are",
    ):
        getattr(export, write)(task, path)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_this_machine():
    assert 10**8 < planning.available_memory() < 10**13


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"target": "onnx"}, "`target`"),
        ({"target": "saved_model", "quantization": "int8"}, "`quantization`"),
        ({"model": "gpt2"}, "`model`"),
        ({"quantization": "int5"}, "int8_weight_only"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    arguments = {"model": models.preset("llama-tiny"), **arguments}
    with pytest.raises(InputError, match=words):
        export.plan_export(**arguments)
