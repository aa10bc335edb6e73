"""Test LiteRT-LM bundles, quantization and the runner: the same text as Keras in LiteRT-LM."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_llm import export, models, tasks, tokenizers
from keras_llm.errors import ExportError, InputError
from keras_llm.export import children, verification
from keras_llm.export.litert import conversion
from keras_llm.export.litert.quantization.rules import QuantizationRule, rules_of
from keras_llm.export.litert.runtime.decoder import DecoderSteps


@pytest.fixture(scope="module")
def bundle(task, held_out_prompts, tmp_path_factory):
    """Return the path of an int8 bundle with a chat template, and its report."""
    path = tmp_path_factory.mktemp("mobile") / "reference.litertlm"
    template = "{% for m in messages %}{{ '' + m.content }}{% endfor %}"  # fails on content lists
    chat_task = tasks.TextGeneration(task.model, task.tokenizer, {"chat_template": template})
    report = export.litert_lm(
        chat_task, path, "int8", cache_length=100, held_out=held_out_prompts, max_quality_loss=0.05
    )
    return path, report


@pytest.fixture(scope="module")
def runner(bundle):
    return export.LiteRTModel(bundle[0])


def test_litert_lm_text_matches_runner(bundle, runner):
    report = bundle[1]["litert_lm"]
    assert report["greedy_texts_equal"] is True and report["prompts"] >= 6
    program = """
import json, sys
from keras_llm.export.litert.litert_lm_worker import greedy
sys.stdout.write(json.dumps(greedy(sys.argv[1], json.loads(sys.argv[2]), 80)))
"""
    prompts = ["The value of", "In the", "A word. " * 8]  # more than one chunk of 16
    command = [sys.executable, "-c", program, str(bundle[0]), json.dumps(prompts)]
    completed = subprocess.run(command, capture_output=True)
    assert completed.returncode == 0, completed.stderr.decode()
    texts = json.loads(completed.stdout.decode().splitlines()[-1])
    assert texts == [runner.generate(prompt, 80, temperature=0.0) for prompt in prompts]


def test_report_has_quality_and_sizes(bundle, task):
    path, report = bundle
    quality = report["quality"]
    assert quality["text"] == "given" and quality["tokens"] > 200
    assert abs(quality["loss"]) < 0.05
    assert quality["loss"] == pytest.approx(
        quality["perplexity"] / quality["perplexity_keras"] - 1, rel=1e-6
    )
    assert quality["greedy_agreement"] > 0.9
    parts = report["bytes"]
    assert parts["total"] == path.stat().st_size
    assert parts["weights_int8"] > 0.9 * task.model.count_params()
    assert parts["weights_int8"] < 1.05 * task.model.count_params()  # each weight is stored once
    assert json.loads((path.parent / "export_report.json").read_text()) == {path.name: report}


def test_report_has_memory_and_speed(bundle, task):
    report, config = bundle[1], task.model.config
    per_token = 2 * config.num_layers * config.num_key_value_heads * config.head_dim * 4
    assert report["cache_bytes_per_token"] == per_token
    settings = [(row["threads"], row["xnnpack"]) for row in report["speed"]]
    assert settings == [(1, True), (2, True), (1, False), (2, False)]
    for row in report["speed"]:
        assert row["decode_tokens_per_second"] > 0 and row["prefill_tokens_per_second"] > 0
        assert row["resident_bytes"] >= row["buffer_bytes"] > 0 < row["load_seconds"]


def test_sampled_text_matches_keras(task, tmp_path, runner):
    export.litert(task, tmp_path / "float.tflite", prefill_lengths=[8])
    settings = [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "top_k": 12, "seed": -3},
        {"temperature": 1.2, "top_p": 0.8, "min_p": 0.02, "seed": 7},
    ]
    texts = [task("The class", 24, **setting) for setting in settings]
    for runtime in ("compiled", "interpreter"):
        device = export.LiteRTModel(tmp_path / "float.tflite", runtime=runtime)
        for setting, expected in zip(settings, texts, strict=True):
            assert device.generate("The class", 24, **setting) == expected
            assert "".join(device.stream("The class", 24, **setting)) == expected
    assert runner.generate("The", 8, temperature=1.0) is not None  # with a random seed


def test_file_has_chat_template(runner):
    messages = [{"role": "user", "content": "The value"}]
    assert runner.chat(messages, 8, temperature=0.0) == runner.chat("The value", 8, temperature=0.0)
    assert runner.chat("The value", 8, temperature=0.0) == runner.generate(
        "The value", 8, parse_special=True, temperature=0.0
    )


def test_cache_length(bundle, runner):
    assert runner.max_length == bundle[1]["max_length"] == 100
    ids = runner.tokenizer.encode("word and " * 100)[:98]
    prompt = runner.tokenizer.decode(ids)
    tokens = [token for token, _ in runner.steps(prompt, 500, temperature=0.0)]
    assert len(tokens) == 1  # the last slot
    with pytest.raises(InputError, match="at most 99"):
        runner.generate("word and " * 100, 5)


def greedy_tokens(model, rows, steps=24):
    """Continue rows of token ids greedily, without tracing a decode loop."""
    rows = list(map(list, rows))
    prompt_lengths = list(map(len, rows))
    batch = np.zeros((len(rows), model.config.max_length), "int32")
    for _ in range(steps):
        for row, ids in zip(batch, rows, strict=True):
            row[: len(ids)] = ids
        for ids, logits in zip(rows, model.predict_on_batch(batch), strict=True):
            ids.append(int(logits[len(ids) - 1].argmax()))
    return [token for ids, begin in zip(rows, prompt_lengths, strict=True) for token in ids[begin:]]


def test_byte_pair_tokenizer_and_additional_end_token(tmp_path):
    tok = tokenizers.BytePair.train(["once upon a time there was"] * 9, 300)
    config = models.preset(
        "llama-tiny", vocabulary_size=304, initializer_range=0.3, max_length=64, num_layers=1
    )
    keras.utils.set_random_seed(0)
    model = models.causal_lm(config)
    tokens = collections.Counter(
        greedy_tokens(model, map(tok.encode_prompt, verification.SEED_TEXTS))
    )
    end_id = tokens.most_common(1)[0][0]  # if it were ignored, texts would differ
    other = tasks.TextGeneration(model, tok, {"end_token_ids": [end_id]})
    rules = [QuantizationRule(bits=4, block=32), QuantizationRule(layers="embedding|head")]
    report = export.litert_lm(other, tmp_path / "other.litertlm", rules, prefill_lengths=[16])
    assert report["litert_lm"]["greedy_texts_equal"] is True
    runner = export.LiteRTModel(tmp_path / "other.litertlm")
    steps = [
        [token for token, _ in runner.steps(p, 24, temperature=0.0)]
        for p in verification.probe_prompts(other)
    ]
    assert any(row[-1] is None for row in steps) and not any(end_id in row for row in steps)
    assert report["quantization"][0]["bits"] == 4 and report["bytes"]["weights_int4"] > 0


@pytest.mark.parametrize("position", [0.3, 0.7])
def test_flipped_bit_raises_error(bundle, tmp_path, position):
    data = bytearray(bundle[0].read_bytes())
    data[int(position * bundle[1]["bytes"]["model"])] ^= 1
    (tmp_path / "flipped.litertlm").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        export.LiteRTModel(tmp_path / "flipped.litertlm")


def test_truncated_bundle_raises_error(bundle, tmp_path):
    data = bundle[0].read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "truncated.litertlm").write_bytes(data[:size])
        with pytest.raises(InputError, match="not a model"):
            export.LiteRTModel(tmp_path / "truncated.litertlm")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: r.generate(""), "prompt"),
        (lambda r: r.generate("a", temperature=-1), "temperature"),
        (lambda r: r.generate("a", top_q=1), "unknown setting `top_q`"),
        (lambda r: r.stream("a", 0), "max_new_tokens"),
        (lambda r: r.translate("a"), "`translate` needs a Translation"),
    ],
)
def test_invalid_runner_arguments_raise_error(runner, call, message):
    with pytest.raises(InputError, match=message):
        call(runner)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"runtime": "gpu"}, "runtime"),
        ({"num_threads": 0}, "num_threads"),
    ],
)
def test_invalid_runner_options_raise_error(bundle, arguments, message):
    with pytest.raises(InputError, match=message):
        export.LiteRTModel(bundle[0], **arguments)


def test_litert_lm_command_line(bundle, tmp_path):
    program = pathlib.Path(sys.executable).with_name("litert-lm")
    command = [program, "run", bundle[0], "--prompt", "The value"]
    completed = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert (
        completed.returncode == 0 and "RuntimeError" not in completed.stdout + completed.stderr
    ), completed.stderr
    assert completed.stdout.strip()


def token_losses(logits, ids):
    """Return the loss, in nats, of each token id after the first."""
    return -keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))[range(len(ids) - 1), ids[1:]]


def find_largest_loss(task, runner, texts):
    """Return the text whose perplexity increases most in a file, after the increase."""
    rows = [task.tokenizer.encode_prompt(text)[: runner.max_length] for text in texts]
    batch = np.zeros((len(rows), task.model.config.max_length), "int32")
    for row, ids in zip(batch, rows, strict=True):
        row[: len(ids)] = ids
    increases = []
    for text, ids, expected in zip(texts, rows, task.model.predict_on_batch(batch), strict=True):
        decoder = DecoderSteps(runner.runtime, runner.manifest)
        logits = np.array([decoder.step(token, i) for i, token in enumerate(ids[:-1])])
        change = (
            token_losses(logits, ids).mean() - token_losses(expected[: len(ids) - 1], ids).mean()
        )
        increases.append((float(np.expm1(change)), text))
    return max(increases)


def test_quality_loss_above_limit_writes_no_file(
    task, bundle, runner, held_out_prompts, tmp_path, monkeypatch
):
    begin, end = runner.manifest["model"]

    def write(plan, model, path, progress):
        path.write_bytes(bundle[0].read_bytes()[begin:end])

    monkeypatch.setattr(conversion, "write", write)
    # An int8 model has a lower perplexity on some texts: use one on which it is higher.
    loss, text = find_largest_loss(task, runner, held_out_prompts)
    assert loss > 0

    def convert(name, max_loss):
        options = {"cache_length": 100, "held_out": [text], "max_quality_loss": max_loss}
        return export.litert(task, tmp_path / name, "int8", **options)["quality"]["loss"]

    measured_loss = convert("allowed.tflite", loss * 2)
    assert measured_loss == pytest.approx(loss, rel=0.01)
    files = sorted(tmp_path.iterdir())
    expected_message = (
        rf"{measured_loss:.2%} worse; `max_quality_loss` allows {measured_loss / 2:.2%}"
    )
    with pytest.raises(ExportError, match=re.escape(expected_message)):
        convert("worse.tflite", measured_loss / 2)
    assert sorted(tmp_path.iterdir()) == files


def test_converter_out_of_memory_raises_error(task, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_MEMORY", 100 << 20)
    monkeypatch.setattr(children, "_kept", {})  # a used process has free memory left
    # The outcome of a failed allocation depends on where it happens.
    reason = r"(ran out of memory|was killed by SIG\w+, most likely because memory ran out)"
    message = rf"^the process that lowers the graph {reason}; nothing was written\."
    with pytest.raises(ExportError, match=message):
        export.litert(task, tmp_path / "x.tflite", prefill_lengths=[16])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"path": "model.tflite"}, "litertlm"),
        ({"quantization": "int5"}, "int8_weight_only"),
        ({"quantization": []}, "quantization"),
        ({"quantization": "int8_static"}, "calibration"),
        ({"quantization": "int8", "held_out": [""]}, "held_out"),
        ({"quantization": "int8", "max_quality_loss": -1}, "max_quality_loss"),
        ({"max_quality_loss": 0.1}, "max_quality_loss"),
        ({"cache_length": 1}, "cache_length"),
        ({"cache_length": 4096}, "cache_length"),
    ],
)
def test_invalid_arguments_raise_error(task, tmp_path, arguments, message):
    arguments = {"task": task, "path": "model.litertlm", **arguments}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(InputError, match=message):
        export.litert_lm(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [{"layers": "("}, {"bits": 3}, {"bits": 8, "block": 32}, {"kind": "magic"}]
)
def test_invalid_rule_raises_error(arguments):
    with pytest.raises(InputError, match=f"`{list(arguments)[-1]}`"):
        QuantizationRule(**arguments)


def test_rules_of_recipes():
    assert rules_of(None) == rules_of("float16") == ()
    assert rules_of("int4")[0].block == 32
    mixed = [QuantizationRule(bits=4), QuantizationRule(layers="block_0", bits=32)]
    assert rules_of(mixed) == tuple(mixed)


@pytest.mark.parametrize(
    "preset, spread, layers",
    [
        ("transformer-tiny", 0.3, 1),
        ("t5-tiny", 0.1, 2),  # layers share a position bias
    ],
)
def test_translation_matches_keras(tmp_path, preset, spread, layers):
    tok = tokenizers.SentencePiece.train(["guten tag", "good day to you"] * 9, 280, "bpe")
    config = models.preset(
        preset,
        vocabulary_size=280,
        start_id=tok.bos_id,
        dropout=0.0,
        initializer_range=spread,
        num_layers=layers,
        num_decoder_layers=layers,
    )
    task = tasks.Translation(models.seq2seq(config), tok)
    path = tmp_path / "translation.tflite"
    report = export.litert(task, path, prefill_lengths=[4], cache_length=40)
    assert report["parity"]["greedy_texts_equal"] and report["parity"]["max_logit_error"] < 1e-4
    assert set(report["signatures"]) == {"encode", "prefill_4", "decode"}
    texts = ["guten tag", "good", "you to day"]
    sampled = {"temperature": 0.9, "seed": 4}
    expected = task(texts, 16), task("good", 9, **sampled)
    for runtime in ("compiled", "interpreter"):
        device = export.LiteRTModel(path, runtime=runtime)
        assert [device.translate(text, 16) for text in texts] == expected[0]
        assert device.translate("good", 9, **sampled) == expected[1]
    with pytest.raises(InputError, match="`generate` needs a TextGeneration"):
        device.generate("good")
    with pytest.raises(InputError, match="at most 40"):
        device.translate("guten tag " * 40)
    with pytest.raises(InputError, match="pairs"):
        export.litert(task, tmp_path / "x.tflite", "int8", held_out=["guten tag"])
    with pytest.raises(InputError, match="TextGeneration"):
        export.litert_lm(task, tmp_path / "x.litertlm")
