"""Test TFLite files: builtin ops, and Keras's texts in the LiteRT runtime."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_llm import export, models, tasks
from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert import conversion, file_format
from keras_llm.export.litert.runtime.flatbuffer_reader import Field, FlatBuffer, Invalid
from keras_llm.export.litert.runtime.model_check import _OPTIONS, _OTHER_OPTIONS, check_model
from keras_llm.export.litert.runtime.operators import OPERATORS


@pytest.fixture(scope="module")
def mobile(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobile")
    one_chunk = {"prefill_lengths": [16]}  # lowers one graph less; the first file has both
    reports = {
        None: export.litert(task, folder / "reference.tflite"),
        "int8": export.litert(task, folder / "reference_int8.tflite", "int8", **one_chunk),
        "float16": export.litert(task, folder / "half.tflite", "float16", **one_chunk),
    }
    return folder, reports


@pytest.fixture(scope="module")
def runner(mobile):
    return export.LiteRTModel(mobile[0] / "reference.tflite")


def test_greedy_text_matches_keras(task, runner, held_out_prompts):
    assert len(held_out_prompts) >= 20
    expected = task(held_out_prompts, 16, temperature=0.0)
    assert [runner.generate(prompt, 16, temperature=0.0) for prompt in held_out_prompts] == expected


def test_stream_matches_full_text(runner):
    pieces = list(runner.stream("The", 20, temperature=0.0))
    assert "".join(pieces) == runner.generate("The", 20, temperature=0.0) and len(pieces) > 5


def test_logits_match_keras_in_all_cache_slots(task, runner):
    ids = task.tokenizer.encode("word and " * 100)[:100]
    prompt = task.tokenizer.decode(ids)
    tokens, logits = zip(*runner.steps(prompt, 500, temperature=0.0), strict=True)
    sequence = [task.tokenizer.bos_id, *task.tokenizer.encode(prompt), *tokens]
    assert None in tokens or len(sequence) == task.model.config.max_length
    sequence = [token for token in sequence if token is not None]
    expected = task.model.predict_on_batch(np.array([sequence], "int32"))[0]
    np.testing.assert_allclose(logits, expected[len(ids) :][: len(logits)], atol=1e-4)


CHUNKS = [1, 2, 15, 16, 17, 18, 33, 120, 126]


@pytest.fixture(scope="module")
def continuations(task):
    """Return a dict from prompt length to the prompt and Keras's text after it."""
    ids = task.tokenizer.encode("It was and is a word. " * 60)
    prompts = [task.tokenizer.decode(ids[:length]) for length in CHUNKS]
    texts = task(prompts, 6, temperature=0.0)
    return dict(zip(CHUNKS, zip(prompts, texts, strict=True), strict=True))


@pytest.mark.parametrize("length", CHUNKS)
def test_prompts_of_all_lengths(continuations, runner, length):
    prompt, expected = continuations[length]
    assert runner.generate(prompt, 6, temperature=0.0) == expected


def test_bfloat16_additional_end_tokens_and_shorter_decode_lengths(task, tmp_path, monkeypatch):
    """Test three features with one file.

    A bfloat16 model is exported in float32; texts end at the task's additional end tokens; and
    decode steps that read fewer cache slots give the same text.
    """
    prompts = ["The", "A word. " * 5, "A word. " * 15, "In 1984", "def f(x):"]
    rows = [row.token_ids for row in task(prompts, 120, temperature=0.0, return_details=True)]
    # One text ends early, the others continue to the last slots.
    early, end = next(
        (i, token)
        for i, row in enumerate(rows)
        for token in row[3:]
        if not any(token in other for other in rows if other is not row)
    )
    rows[early] = rows[early][: rows[early].index(end)]
    model = models.causal_lm(task.model.config, dtype="mixed_bfloat16")
    model.set_weights(task.model.get_weights())
    mixed = tasks.TextGeneration(model, task.tokenizer, {"end_token_ids": [end]})
    monkeypatch.setattr(conversion, "_DECODE_LENGTHS", (32, 64))
    report = export.litert(mixed, tmp_path / "mixed.tflite", prefill_lengths=[16])
    assert set(report["signatures"]) == {"prefill_16", "decode_32", "decode_64", "decode"}
    assert report["parity"]["greedy_texts_equal"]
    assert report["parity"]["max_logit_error"] < 1e-3
    device = export.LiteRTModel(tmp_path / "mixed.tflite")
    for prompt, ids in zip(prompts, rows, strict=True):
        assert device.generate(prompt, 120, temperature=0.0) == task.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "name, options",
    [
        ("gpt-tiny", {"num_layers": 1}),
        ("gemma3-tiny", {"sliding_window": 4, "num_sink_tokens": 1}),  # layers of two kinds
        ("lamda-tiny", {"num_layers": 1, "num_experts": 3, "learned_sinks": True}),
    ],
)
def test_other_architectures(task, tmp_path, name, options):
    config = models.preset(name, initializer_range=0.3, max_length=24, **options)
    other = tasks.TextGeneration(models.causal_lm(config), task.tokenizer)
    report = export.litert(other, tmp_path / "other.tflite", prefill_lengths=[5])
    assert report["parity"]["greedy_texts_equal"] is True
    assert report["prefill_lengths"] == [5]
    device = export.LiteRTModel(tmp_path / "other.tflite")
    assert device.generate("The word", 50, temperature=0.0) == other(
        "The word", 50, temperature=0.0
    )


def test_signatures_match_litert_lm(mobile, task):
    report = mobile[1][None]
    config, slots = task.model.config, report["cache_slots"]
    assert set(report["signatures"]) == {"prefill_16", "prefill_128", "decode"}
    cache = {
        f"kv_cache_{kind}_{i}": f"float32[1, {config.num_key_value_heads}, {slots}, 16]"
        for i in range(config.num_layers)
        for kind in "kv"
    }
    for name, length in (("prefill_16", 16), ("prefill_128", 128), ("decode", 1)):
        rows = report["signatures"][name]
        assert rows["inputs"] == {
            "tokens": f"int32[1, {length}]",
            "input_pos": f"int32[{length}]",
            "mask": f"float32[1, 1, {length}, {slots}]",
            **cache,
        }
        logits = {"logits": f"float32[1, 1, {config.vocabulary_size}]"}
        assert rows["outputs"] == (cache | logits if name == "decode" else cache)


def test_file_sizes_and_parity_of_quantized_files(mobile, task):
    full, float16, int8 = (mobile[1][q] for q in (None, "float16", "int8"))
    assert full["bytes"]["model"] < 4 * task.model.count_params() + 100_000
    assert int8["bytes"]["model"] < 0.5 * full["bytes"]["model"]
    assert float16["bytes"]["model"] < 0.65 * full["bytes"]["model"]
    # One of about 75 choices may be a tie; the bounds on logits of float16 are tight.
    assert float16["parity"]["top_1_agreement"] >= 0.98
    assert float16["parity"]["max_logit_error"] < 0.02
    assert float16["parity"]["mean_kl_divergence_nats"] < 1e-6
    assert int8["parity"]["top_1_agreement"] >= 0.9
    assert int8["parity"]["mean_kl_divergence_nats"] < 0.01
    assert full["parity"]["max_logit_error"] < 1e-3


def test_export_report(mobile):
    folder, reports = mobile
    names = ["export_report.json", "half.tflite", "reference.tflite", "reference_int8.tflite"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "export_report.json").read_text()) == {
        "half.tflite": reports["float16"],
        "reference.tflite": reports[None],
        "reference_int8.tflite": reports["int8"],
    }


def test_int8_file_generates_text(mobile, task):
    device = export.LiteRTModel(mobile[0] / "reference_int8.tflite", num_threads=1)
    assert isinstance(device.generate("The", 12), str)


def test_runner_does_not_import_tensorflow(mobile, task):
    program = """
import sys
sys.modules["tensorflow"] = sys.modules["keras"] = None  # importing either would raise
from keras_llm import export
text = export.LiteRTModel(sys.argv[1]).generate("The", 12, temperature=0.0)
sys.stdout.buffer.write(text.encode())
"""
    command = [sys.executable, "-c", program, str(mobile[0] / "reference.tflite")]
    completed = subprocess.run(command, capture_output=True)
    assert completed.returncode == 0, completed.stderr.decode()
    assert completed.stdout.decode() == task("The", 12, temperature=0.0)


def test_non_builtin_op_raises_error(tmp_path):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2,), tf.float32)])
        def __call__(self, x):
            return x + tf.random.stateless_uniform((2,), seed=[1, 2])

    module = Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.__call__.get_concrete_function()], module
    )
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    path = tmp_path / "flex.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ExportError, match=r"Flex\w+ is not builtin"):
        file_format.op_census(path)


@pytest.mark.parametrize("quantization, message", [(None, "differ from"), ("int8", "diverge from")])
def test_failed_verification_writes_no_file(quantization, message, task, tmp_path, monkeypatch):
    write = conversion.write

    def write_other_weights(plan, *arguments):
        model = plan.task.model
        weights = model.get_weights()
        model.set_weights([w * (1.01 if quantization is None else 1.5) for w in weights])
        try:
            write(plan, *arguments)
        finally:
            model.set_weights(weights)  # other tests use the model

    monkeypatch.setattr(conversion, "write", write_other_weights)
    with pytest.raises(ExportError, match=f"{message} Keras"):
        export.litert(task, tmp_path / "broken.tflite", quantization, prefill_lengths=[16])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "model.bin"}, "tflite"),
        ({"quantization": "int3"}, "quantization"),
        ({"prefill_lengths": [0]}, "prefill_lengths"),
        ({"prefill_lengths": []}, "prefill_lengths"),
        ({"prefill_lengths": [4096]}, "prefill_lengths"),
        ({"task": None}, "task"),
    ],
)
def test_invalid_arguments_raise_error(task, tmp_path, arguments, message):
    arguments = {"task": task, "path": "model.tflite", **arguments}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(InputError, match=message):
        export.litert(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_raises_error(mobile, task):
    with pytest.raises(InputError, match="exists"):
        export.litert(task, mobile[0] / "reference.tflite")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", 5), "prompt"),
        (("word " * 300, 5), "at most 127"),
        (("a", 0), "max_new_tokens"),
    ],
)
def test_invalid_generate_arguments_raise_error(runner, arguments, message):
    with pytest.raises(InputError, match=message):
        runner.generate(*arguments)


def test_invalid_files_raise_error(mobile, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        export.LiteRTModel(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("hello")
    with pytest.raises(InputError, match="not a model"):
        export.LiteRTModel(tmp_path / "text.tflite")
    shutil.copy(mobile[0] / "reference.tflite", tmp_path / "truncated.tflite")
    content = (tmp_path / "truncated.tflite").read_bytes()
    (tmp_path / "truncated.tflite").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a model"):
        export.LiteRTModel(tmp_path / "truncated.tflite")
    (tmp_path / "headless.tflite").write_bytes(b"x" * 100_000 + content[100_000:])
    with pytest.raises(InputError, match="damaged"):
        export.LiteRTModel(tmp_path / "headless.tflite")


@pytest.fixture(scope="module")
def model_bytes(mobile):
    """Return the bytes of a model, its manifest, and the other files of its archive."""
    path = mobile[0] / "reference.tflite"
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("keras_llm.json"))
        others = {n: archive.read(n) for n in archive.namelist() if n != "keras_llm.json"}
    return path.read_bytes()[slice(*manifest["model"])], manifest, others


def _remove_bias(model, graph):
    operator = graph.operators[0]
    operator.inputs = np.array([-1, *operator.inputs[1:]], "int32")


def _read_too_early(model, graph):
    graph.operators.insert(0, graph.operators.pop())


def _write_twice(model, graph):
    graph.operators[1].outputs = graph.operators[0].outputs


def _split_in_more(model, graph):
    code = next(i for i, c in enumerate(model.operatorCodes) if c.builtinCode == 49)
    operator = next(o for o in graph.operators if o.opcodeIndex == code)
    operator.builtinOptions.numSplits += 1


def _scale(tensor, count):
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.ones(count, "float32")


def _set(name, value, get):
    return lambda model, graph: setattr(get(model, graph), name, value)


def _tensor(model, graph):
    return graph.tensors[graph.operators[0].outputs[0]]


def _constant(model, graph):
    return next(t for t in graph.tensors if model.buffers[t.buffer].offset)


CHANGES = {
    "reads a tensor that is not computed": _read_too_early,
    "reads a tensor that is not": _remove_bias,
    "does not write a tensor of its own": _write_twice,
    "tensors in its options": _split_in_more,
    "buffer of a tensor does not exist": _set("buffer", 10**6, _tensor),
    "has the shape": _set("shape", np.array([2**31 - 1] * 3, "int32"), _tensor),
    r"has the shape \[-1\]": _set("shape", np.array([-1], "int32"), _tensor),
    "a constant of shape": _set("shape", np.array([3], "int32"), _constant),
    "type 5, which is not": _set("type", 5, _tensor),
    "sparse or variable": _set("isVariable", True, _tensor),
    "has 7 scales": lambda model, graph: _scale(_tensor(model, graph), 7),
    "an operator does not exist": _set("opcodeIndex", 999, lambda m, g: g.operators[0]),
    "operator 200 is not supported": _set("builtinCode", 200, lambda m, g: m.operatorCodes[0]),
    "operator .* is not supported": _set("customCode", b"x", lambda m, g: m.operatorCodes[0]),
    "outside of the file": _set("offset", 2**40, lambda m, g: m.buffers[-1]),
    "output of a graph is not computed": _set(
        "outputs", np.array([10**6], "int32"), lambda m, g: g
    ),
    "input of a graph is not": _set("inputs", np.array([-1], "int32"), lambda m, g: g),
    "graph of a signature": _set("subgraphIndex", 99, lambda m, g: m.signatureDefs[0]),
    "does not name the inputs": lambda model, graph: model.signatureDefs[0].inputs.pop(),
    "signatures with different names": _set("signatureDefs", [], lambda m, g: m),
}


@pytest.mark.parametrize("message", CHANGES)
def test_crafted_model_raises_error(model_bytes, message, tmp_path):
    content, _, _ = model_bytes
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    CHANGES[message](model, model.subgraphs[0])
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "model.tflite"
    path.write_bytes(bytes(builder.Output()) + content)  # no offset is too large
    with pytest.raises(InputError, match=rf"model.tflite has no valid TFLite model: .*{message}"):
        check_model(path, 0, path.stat().st_size)


def test_table_of_operators_is_that_of_the_schema():
    types = {value: name for name, value in vars(schema.BuiltinOptions).items() if name[0] != "_"}
    for name, operator in OPERATORS.items():
        assert getattr(schema.BuiltinOperator, name) == operator.code
        words = [word.capitalize() for word in name.split("_")]
        assert not operator.options or types[operator.options] == f"{''.join(words)}Options"
    has_vectors = {
        value
        for value, name in types.items()
        for attribute in vars(getattr(schema, name, object))
        if attribute.endswith(("AsNumpy", "Length")) or attribute == "SharedName"
    }
    assert has_vectors <= set(_OPTIONS) | _OTHER_OPTIONS


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": ["TextGeneration"]}, "`task` must be str"),
        ({"task": "Other"}, "`task` must be one of TextGeneration"),
        ({"cache_slots": "256"}, "`cache_slots` must be int"),
        ({"cache_slots": 2**40}, "needs an input 'mask'"),
        ({"prefill_lengths": []}, "`prefill_lengths` is too small"),
        ({"prefill_lengths": [-16]}, "`prefill_lengths` must not be negative"),
        ({"end_token_ids": None}, "`end_token_ids` must be"),
        ({"model": [0]}, "`model` must be"),
        ({"model": [0, 10**9]}, "has no model in the bytes 0 to 1000000000"),
        ({"size": -5}, "`size` must not be negative"),
        ({"chat_template": {}}, "`chat_template` must be str"),
    ],
)
def test_wrong_manifest_raises_error(model_bytes, changes, message, tmp_path):
    content, manifest, others = model_bytes
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        row = {**manifest, "size": len(content), "crc32": zlib.crc32(content), **changes}
        archive.writestr("keras_llm.json", json.dumps(row))
        for name, other in others.items():
            archive.writestr(name, other)
    with pytest.raises(InputError, match=message):
        export.LiteRTModel(path)


@pytest.mark.parametrize("runtime", ["compiled", "interpreter"])
def test_mutated_files_load_or_raise_error(mobile, runtime):
    count = os.environ.get("FUZZ_EXAMPLES", "40")
    script = pathlib.Path(__file__).with_name("mutate_models.py")
    path = mobile[0] / "reference.tflite"
    command = [sys.executable, str(script), str(path), count, "0", runtime]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    answer = json.loads(completed.stdout)
    assert not answer["failed"] and answer["outcomes"]["InputError"] > 10


def test_numbers_that_a_file_may_refer_to():
    """Each of the nine graphs of a model of 0.6 billion weights has a million scales."""
    header = struct.pack("<I4sHHHxxiII", 16, b"TFL3", 6, 8, 4, 8, 4, 10**6)  # a table, a vector
    data, fields = header + bytes(4 * 10**6), [Field("scale", 0, ["float32"])]
    buffer = FlatBuffer(data, len(data))
    for _ in range(9):
        assert len(buffer.table(buffer.root(b"TFL3"), fields)["scale"]) == 10**6
    with pytest.raises(Invalid, match="too many"):
        for _ in range(1000):
            buffer.table(16, fields)
