"""Test TFLite files: builtin ops, and Keras's texts in the LiteRT runtime."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_llm import export, models, tasks
from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert import conversion, file_format


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
