"""Compare quantized values and scales with ai-edge-quantizer, and check what files contain."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import InputError
from keras_llm.export.litert import file_format
from keras_llm.export.litert.quantization.rounding import Storage, pack_int4
from keras_llm.export.litert.quantization.rules import QuantizationRule, rule_for

ROWS = ["once upon a time there was a fox"] * 3


@pytest.fixture(scope="module")
def task():
    """Return a task of one block whose biases, gains and tied embeddings are randomized."""
    tok = tokenizers.BytePair.train(ROWS * 3, 300)
    config = models.preset(
        "gpt-tiny", vocabulary_size=300, max_length=48, num_layers=1, initializer_range=0.2
    )
    model = models.causal_lm(config)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(np.array(variable) + rng.normal(0, 0.1, variable.shape))
    return keras_llm.TextGeneration(model, tok)


def export_model(task, folder, quantization, **options):
    path = folder / "x.tflite"
    report = export.litert(task, path, quantization, prefill_lengths=[8], **options)
    begin, end = export.LiteRTModel(path).manifest["model"]
    (folder / "model.tflite").write_bytes(path.read_bytes()[begin:end])
    return report, folder / "model.tflite"


def read_weights(path):
    """Return a dict from name to the tensor and the stored bytes of each weight of a file."""
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    weights = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if buffer.size:
                data = content[buffer.offset : buffer.offset + buffer.size]
                weights[tensor.name.decode()] = tensor, data
    return weights


@pytest.mark.parametrize("bits, block", [(8, None), (4, None), (4, 32), (4, 64)])
def test_values_match_ai_edge_quantizer(bits, block):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as theirs

    rng = np.random.default_rng(1)
    matrix = (rng.normal(size=(24, 128)) * np.exp(rng.normal(size=(24, 1)))).astype("float32")
    matrix[5] = 0
    values, scales = Storage(bits, block).quantize(matrix)
    name = "CHANNELWISE" if block is None else f"BLOCKWISE_{block}"
    granularity = qtyping.QuantGranularity[name]
    blocks = matrix.reshape(24, -1, block or 128)
    zero, expected = theirs.tensor_zp_scale_from_min_max(
        blocks.min(-1), blocks.max(-1), bits, True, granularity
    )
    np.testing.assert_array_equal(scales, expected)
    matrix, scales, values = (np.delete(x, 5, 0) for x in (matrix, expected, values))
    parameters = qtyping.UniformQuantParams(
        bits, 0 if block is None else 1, scales, np.delete(zero, 5, 0), True, None, block or 0
    )
    np.testing.assert_array_equal(
        values, theirs.uniform_quantize(matrix, parameters, is_blockwise_quant=block is not None)
    )


def test_pack_int4():
    values = np.array([-8, 7, 0, -1, 3], "int8")
    assert pack_int4(values).tolist() == [0x78, 0xF0, 0x03]


def test_weights_are_stored_once_by_their_rules(task, tmp_path):
    rules = [
        QuantizationRule(),
        QuantizationRule("feed_forward", bits=4, block=32),
        QuantizationRule("self_attention/query", bits=32),
        QuantizationRule("self_attention/key", bits=4),
        QuantizationRule("self_attention/value", kind="weight_only"),
    ]
    _, path = export_model(task, tmp_path, rules)
    weights = read_weights(path)
    types = {
        "token_embedding/embeddings": schema.TensorType.INT8,
        "block_0/self_attention/query/kernel": schema.TensorType.FLOAT32,
        "block_0/self_attention/query/bias": schema.TensorType.FLOAT32,
        "block_0/self_attention/key/kernel": schema.TensorType.INT4,
        "block_0/self_attention/value/kernel": schema.TensorType.INT8,
        "block_0/self_attention/output/kernel": schema.TensorType.INT8,
        "block_0/feed_forward/up/kernel": schema.TensorType.INT4,
        "block_0/feed_forward/down/kernel": schema.TensorType.INT4,
    }
    assert {name: weights[name][0].type for name in types} == types
    parts = file_format.parts(path)
    assert parts["weights_int8"] == (300 + 48) * 64 + 2 * 64 * 64
    assert parts["weights_int4"] == (64 * 64 + 2 * 64 * 256) // 2


def test_last_matching_rule_applies():
    rules = [QuantizationRule(), QuantizationRule("block_1/", bits=4, block=32)]
    assert rule_for(rules, "block_1/feed_forward/up", 64).bits == 4
    assert rule_for(rules, "block_11/feed_forward/up", 64).bits == 8
    assert rule_for(rules, "block_1/feed_forward/up", 48) == QuantizationRule(
        "block_1/feed_forward/up"
    )
    assert rule_for([QuantizationRule("block", bits=32)], "block_1", 64) is None


def test_different_rules_for_tied_embeddings_raise_error(task, tmp_path):
    rules = [QuantizationRule(), QuantizationRule("/head", bits=4)]
    with pytest.raises(InputError, match="share one table"):
        export.litert(task, tmp_path / "x.tflite", rules, prefill_lengths=[8])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only", "int8_static", "int4"])
def test_recipes_match_dequantized_weights(task, tmp_path, quantization):
    """A Keras model with the file's weights gives the file's logits, up to activation rounding.

    Weight-only files do not round activations.
    """
    report, path = export_model(task, tmp_path, quantization, calibration=ROWS)
    bounds = {"int8_weight_only": 0.005, "int8": 0.02, "int8_static": 0.05, "int4": 0.5}
    assert report["parity"]["mean_kl_divergence_nats"] < bounds[quantization]
    # The report has the seconds of each step.
    assert set(report["seconds"]) == {"trace", "lower", "quantize", "write", "verify"}
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    saved = json.loads((tmp_path / "export_report.json").read_text())
    assert saved["x.tflite"]["seconds"] == report["seconds"]
    if quantization != "int8_weight_only":
        return
    interpreter = Interpreter(str(path))
    weights = read_weights(path)
    dequantized = models.causal_lm(task.model.config)
    dequantized.set_weights(task.model.get_weights())
    for variable in dequantized.variables:
        tensor, data = weights.get(variable.path, (None, None))
        if tensor is None or tensor.type != schema.TensorType.INT8:
            continue
        values = np.frombuffer(data, "int8").reshape(tensor.shape).astype("float32")
        values = values * tensor.quantization.scale[:, None]
        is_table = variable.path.endswith("embeddings")
        variable.assign(values if is_table else values.T)
    ids = task.tokenizer.encode(ROWS[0])[:8]
    tokens = np.array([ids], "int32")
    expected = keras.ops.convert_to_numpy(dequantized(tokens))[0, -1]
    inputs = {
        n: np.zeros(d["shape"], d["dtype"])
        for n, d in interpreter.get_signature_runner("prefill_8").get_input_details().items()
    }
    slots = inputs["mask"].shape[-1]
    for i, token in enumerate(ids):
        runner = interpreter.get_signature_runner("decode")
        mask = np.where(np.arange(slots) <= i, 0.0, -1e9).astype("float32")
        step = {
            "tokens": np.array([[token]], "int32"),
            "input_pos": np.array([i], "int32"),
            "mask": mask[None, None, None],
        }
        outputs = runner(**{**inputs, **step})
        inputs |= {n: v for n, v in outputs.items() if n in inputs}
    np.testing.assert_allclose(outputs["logits"][0, 0], expected, atol=1e-3)


def test_bfloat16_model_is_rounded_like_float32_model(task, tmp_path):
    """Activations for rounding are computed in float32 for weights of either precision."""
    bfloat16 = models.causal_lm(task.model.config, dtype="bfloat16")
    bfloat16.set_weights(task.model.get_weights())
    float32 = models.causal_lm(task.model.config)
    float32.set_weights([np.asarray(weight, "float32") for weight in bfloat16.get_weights()])
    files = []
    for name, model in (("bfloat16", bfloat16), ("float32", float32)):
        (tmp_path / name).mkdir()
        other = keras_llm.TextGeneration(model, task.tokenizer)
        _, path = export_model(other, tmp_path / name, "int4", calibration=ROWS)
        files.append({name: data for name, (_, data) in read_weights(path).items()})
    assert len(files[0]) > 10 and files[0] == files[1]
