"""Test exports of large models, with random weights."""

import gc
import importlib.util
import json
import mmap
import pathlib
import pydoc_data.topics
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import ops

import keras_llm
from keras_llm import export, models

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
PROMPTS, NEW_TOKENS = 10, 16
GREEDY_SCRIPT = """
import json, sys
from keras_llm.export.litert.litert_lm_worker import greedy
path, prompts, count, cache = sys.argv[1:]
print(json.dumps(greedy(path, json.loads(prompts), int(count), cache)))
"""


def load_benchmark_task(preset):
    """Return the task that benchmarks/export.py exports."""
    path = ROOT / "benchmarks" / "export.py"
    spec = importlib.util.spec_from_file_location("export_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.task_of(preset)


@pytest.mark.parametrize(
    "preset, quantization",
    [("qwen3-0.6b", "int4"), ("llama3.2-1b", "int4"), ("llama3.2-1b", "int8")],
)
def test_greedy_text_in_litert_lm_matches_dequantized_model(
    preset, quantization, tmp_path, monkeypatch
):
    task = load_benchmark_task(preset)
    path = tmp_path / "model.litertlm"
    report = export.litert_lm(task, path, quantization)
    assert report["litert_lm"]["greedy_texts_equal"] is True
    tokenizer, config = task.tokenizer, task.model.config
    del task
    gc.collect()
    topics = list(pydoc_data.topics.topics.values())
    prompts = [topic.strip()[: 10 + 8 * i] for i, topic in enumerate(topics[:PROMPTS])]
    arguments = [path, json.dumps(prompts), str(NEW_TOKENS), tmp_path]
    completed = subprocess.run(
        [sys.executable, "-c", GREEDY_SCRIPT, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    texts = json.loads(completed.stdout.splitlines()[-1])
    runner = export.LiteRTModel(path)
    tokens = [
        [t for t, _ in runner.steps(p, NEW_TOKENS, temperature=0.0) if t is not None]
        for p in prompts
    ]
    # LiteRT-LM returns texts as C strings, which end at the first null character.
    assert texts == [tokenizer.decode(ids).partition("\0")[0] for ids in tokens]
    begin = runner.manifest["model"][0]
    del runner
    gc.collect()
    model = models.causal_lm(config)
    dequantize(model, path, begin)
    rounded, unrounded, chosen = [], [], []
    for prompt, ids in zip(prompts, tokens, strict=True):
        row = [tokenizer.encode_prompt(prompt), ids, tokenizer.vocabulary_size]
        rounded.append(compute_logits(model, *row))
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "fake_quantize", lambda x: x)
            unrounded.append(compute_logits(model, *row))
        chosen.append(ids)
    rounded, unrounded, chosen = map(np.concatenate, (rounded, unrounded, chosen))
    best = rounded.max(-1)
    gaps = best - np.take_along_axis(rounded, chosen[:, None], -1)[:, 0]
    equal = float(np.mean(rounded.argmax(-1) == chosen))
    equal_unrounded = float(np.mean(rounded.argmax(-1) == unrounded.argmax(-1)))
    noise = float(np.sqrt(np.mean((rounded - unrounded) ** 2)))
    print(
        f"{preset} {quantization}: {equal:.3f} of {len(chosen)} greedy choices equal "
        f"({equal_unrounded:.3f} without the rounding of activations), largest gap of a logit "
        f"{gaps.max():.4f}; standard deviation of the logits {rounded.std():.4f}, of what the "
        f"rounding changes {noise:.4f}"
    )
    # Float errors flip single roundings, and later layers amplify each flip up to the size of
    # the rounding errors themselves. So a choice may differ between two logits that are closer
    # than these errors, and the file must be no further from the reference than the model without
    # rounding is.
    assert gaps.max() < 4 * noise
    assert equal >= equal_unrounded


def compute_logits(model, prompt_ids, token_ids, vocabulary_size):
    """Return the logits (N, V) from which the N tokens after a prompt were chosen."""
    logits = np.asarray(model(np.array([[*prompt_ids, *token_ids]])))
    return logits[0, len(prompt_ids) - 1 : -1, :vocabulary_size]


# The following functions give a Keras model the computation of a quantized file: its weights are
# the file's integers times their scales, and inputs of matrix products are rounded to 8 bits as
# XNNPACK does for weights of 8 and 4 bits, with one scale and zero point per token.


def dequantize(model, path, begin):
    """Give a float32 model the weights of a file, and round the inputs of its matrix products.

    Args:
        model: a model from `causal_lm` with dense layers and tied embeddings.
        path: the file.
        begin: int, the offset of the TFLite model in the file.
    """
    factors = {}
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        stored, factors = _read_weights(memoryview(data)[begin:])
    variables = {variable.path: variable for variable in model.variables}
    for name, matrix in stored.items():
        variable = variables[name]
        variable.assign(matrix.T if name.endswith("/kernel") else matrix.reshape(variable.shape))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dense):
            layer.call = _dense_with_rounding(layer.call, factors.get(layer.kernel.path))
        elif isinstance(layer, keras.layers.ReversibleEmbedding):
            factor = factors.get(layer.embeddings.path)
            layer.call = _embedding_with_rounding(layer.call, factor)


def fake_quantize(x):
    """Round float32 (..., C) to 8 bits: asymmetric, one scale per row."""
    minimum = ops.minimum(ops.min(x, -1, keepdims=True), 0.0)
    maximum = ops.maximum(ops.max(x, -1, keepdims=True), 0.0)
    scale = ops.where(maximum == minimum, 1.0, 255.0 / (maximum - minimum))
    error_at_minimum, error_at_maximum = -128.0 + minimum * scale, 127.0 + maximum * scale
    zero = ops.where(
        error_at_minimum + error_at_maximum > 0, -128.0 - minimum * scale, 127.0 - maximum * scale
    )
    zero = ops.round(ops.clip(zero, -128.0, 127.0))
    values = ops.clip(ops.round(x * scale) + zero, -128.0, 127.0)
    return (values - zero) / scale


def _dense_with_rounding(call, factor):
    def call_rounded(x, **arguments):
        return call(fake_quantize(x if factor is None else x * factor), **arguments)

    return call_rounded


def _embedding_with_rounding(call, factor):
    def call_rounded(x, reverse=False):
        if reverse:
            x = fake_quantize(x if factor is None else x * factor)
        return call(x, reverse=reverse)

    return call_rounded


def _read_weights(data):
    """Read the stored weights of a TFLite model.

    Returns:
        A dict from name to float32 array of every weight, and a dict from name to the factor of
        a matrix product's input, for those that have one.
    """
    model = schema.Model.GetRootAs(data, 0)
    stored, factors = {}, {}
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            name, buffer = tensor.Name().decode(), model.Buffers(tensor.Buffer())
            is_scale = tensor.Type() == schema.TensorType.FLOAT16
            if buffer.Size() and name not in stored and not is_scale:
                stored[name] = _dequantize(data, model, graph, tensor, buffer)
        multipliers = {}
        for j in range(graph.OperatorsLength()):
            operator = graph.Operators(j)
            inputs = operator.InputsAsNumpy()
            code = model.OperatorCodes(operator.OpcodeIndex())
            if code.BuiltinCode() == schema.BuiltinOperator.MUL:
                multipliers[int(operator.Outputs(0))] = graph.Tensors(int(inputs[1]))
            elif code.BuiltinCode() == schema.BuiltinOperator.FULLY_CONNECTED:
                multiplier = multipliers.get(int(inputs[0]))
                if multiplier is not None and multiplier.Name().endswith(b"/balance"):
                    buffer = model.Buffers(multiplier.Buffer())
                    values = np.frombuffer(buffer.DataAsNumpy().tobytes(), "float32")
                    factors[graph.Tensors(int(inputs[1])).Name().decode()] = values
    return stored, factors


def _dequantize(data, model, graph, tensor, buffer):
    shape = [tensor.Shape(k) for k in range(tensor.ShapeLength())]
    raw = np.frombuffer(data[buffer.Offset() : buffer.Offset() + buffer.Size()], "uint8")
    if tensor.Type() == schema.TensorType.FLOAT32:
        return raw.view("float32").reshape(shape).copy()
    if tensor.Type() == schema.TensorType.INT4:
        low, high = raw << 4, raw & 0xF0
        values = (np.stack([low, high], -1).view("int8") >> 4).reshape(shape)
    else:
        assert tensor.Type() == schema.TensorType.INT8
        values = raw.view("int8").reshape(shape)
    quantization = tensor.Quantization()
    if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        details.Init(quantization.Details().Bytes, quantization.Details().Pos)
        scales = model.Buffers(graph.Tensors(details.Scales()).Buffer())
        scales = data[scales.Offset() : scales.Offset() + scales.Size()]
        scales = np.frombuffer(scales, "float16").astype("float32").reshape(len(values), -1, 1)
        blocks = values.reshape(len(values), scales.shape[1], -1)
        return (blocks * scales).reshape(shape)
    return values * quantization.ScaleAsNumpy()[:, None]
