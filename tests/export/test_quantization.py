"""Whole numbers and scales are those of Google's quantizer; files hold what they should."""

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
    """A model of one block with biases, gains and a tied table, none of them at its start."""
    tok = tokenizers.BytePair.train(ROWS * 3, 300)
    config = models.preset(
        "gpt-tiny", vocabulary_size=300, max_length=48, num_layers=1, initializer_range=0.2
    )
    model = models.causal_lm(config)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(np.array(variable) + rng.normal(0, 0.1, variable.shape))
    return keras_llm.TextGeneration(model, tok)


def exported(task, folder, quantization, **options):
    path = folder / "x.tflite"
    report = export.litert(task, path, quantization, prefill_lengths=[8], **options)
    begin, end = export.LiteRTModel(path).manifest["model"]
    (folder / "model.tflite").write_bytes(path.read_bytes()[begin:end])
    return report, folder / "model.tflite"


def stored(path):
    """Name -> (type, values) of the stored weights of a file, in whole numbers if they are."""
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    found = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if buffer.size:
                data = content[buffer.offset : buffer.offset + buffer.size]
                found[tensor.name.decode()] = tensor, data
    return found


@pytest.mark.parametrize("bits, block", [(8, None), (4, None), (4, 32), (4, 64)])
def test_numbers_are_those_of_googles_quantizer(bits, block):
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


def test_pairs_of_four_bits():
    values = np.array([-8, 7, 0, -1, 3], "int8")
    assert pack_int4(values).tolist() == [0x78, 0xF0, 0x03]


def test_each_weight_is_stored_once_and_as_its_rule_says(task, tmp_path):
    rules = [
        QuantizationRule(),
        QuantizationRule("feed_forward", bits=4, block=32),
        QuantizationRule("self_attention/query", bits=32),
        QuantizationRule("self_attention/key", bits=4),
        QuantizationRule("self_attention/value", kind="weight_only"),
    ]
    _, path = exported(task, tmp_path, rules)
    found = stored(path)
    kinds = {
        "token_embedding/embeddings": schema.TensorType.INT8,
        "block_0/self_attention/query/kernel": schema.TensorType.FLOAT32,
        "block_0/self_attention/query/bias": schema.TensorType.FLOAT32,
        "block_0/self_attention/key/kernel": schema.TensorType.INT4,
        "block_0/self_attention/value/kernel": schema.TensorType.INT8,
        "block_0/self_attention/output/kernel": schema.TensorType.INT8,
        "block_0/feed_forward/up/kernel": schema.TensorType.INT4,
        "block_0/feed_forward/down/kernel": schema.TensorType.INT4,
    }
    assert {name: found[name][0].type for name in kinds} == kinds
    parts = file_format.parts(path)
    assert parts["weights_int8"] == (300 + 48) * 64 + 2 * 64 * 64
    assert parts["weights_int4"] == (64 * 64 + 2 * 64 * 256) // 2


def test_the_last_rule_that_fits_counts():
    rules = [QuantizationRule(), QuantizationRule("block_1/", bits=4, block=32)]
    assert rule_for(rules, "block_1/feed_forward/up", 64).bits == 4
    assert rule_for(rules, "block_11/feed_forward/up", 64).bits == 8
    assert rule_for(rules, "block_1/feed_forward/up", 48) == QuantizationRule(
        "block_1/feed_forward/up"
    )
    assert rule_for([QuantizationRule("block", bits=32)], "block_1", 64) is None


def test_a_shared_table_has_one_rule(task, tmp_path):
    rules = [QuantizationRule(), QuantizationRule("/head", bits=4)]
    with pytest.raises(InputError, match="share one table"):
        export.litert(task, tmp_path / "x.tflite", rules, prefill_lengths=[8])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only", "int8_static", "int4"])
def test_a_recipe_gives_what_dequantized_weights_give(task, tmp_path, quantization):
    """A Keras model with the file's weights gives the file's logits, up to what rounding
    activations adds: nothing for weight-only files."""
    report, path = exported(task, tmp_path, quantization, calibration=ROWS)
    bounds = {"int8_weight_only": 0.005, "int8": 0.02, "int8_static": 0.05, "int4": 0.5}
    assert report["parity"]["mean_kl_divergence_nats"] < bounds[quantization]
    # The report tells where the seconds went.
    assert set(report["seconds"]) == {"trace", "lower", "quantize", "write", "verify"}
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    kept = json.loads((tmp_path / "export_report.json").read_text())
    assert kept["x.tflite"]["seconds"] == report["seconds"]
    if quantization != "int8_weight_only":
        return
    interpreter = Interpreter(str(path))
    found = stored(path)
    twin = models.causal_lm(task.model.config)
    twin.set_weights(task.model.get_weights())
    for variable in twin.variables:
        tensor, data = found.get(variable.path, (None, None))
        if tensor is None or tensor.type != schema.TensorType.INT8:
            continue
        values = np.frombuffer(data, "int8").reshape(tensor.shape).astype("float32")
        values = values * tensor.quantization.scale[:, None]
        is_table = variable.path.endswith("embeddings")
        variable.assign(values if is_table else values.T)
    ids = task.tokenizer.encode(ROWS[0])[:8]
    tokens = np.array([ids], "int32")
    expected = keras.ops.convert_to_numpy(twin(tokens))[0, -1]
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


def test_a_model_in_bfloat16_is_rounded_as_the_same_model_in_float32(task, tmp_path):
    """Activations that decide the rounding are read in float32 from weights of either precision."""
    half = models.causal_lm(task.model.config, dtype="bfloat16")
    half.set_weights(task.model.get_weights())
    whole = models.causal_lm(task.model.config)
    whole.set_weights([np.asarray(weight, "float32") for weight in half.get_weights()])
    files = []
    for name, model in (("half", half), ("whole", whole)):
        (tmp_path / name).mkdir()
        other = keras_llm.TextGeneration(model, task.tokenizer)
        _, path = exported(other, tmp_path / name, "int4", calibration=ROWS)
        files.append({name: data for name, (_, data) in stored(path).items()})
    assert len(files[0]) > 10 and files[0] == files[1]
