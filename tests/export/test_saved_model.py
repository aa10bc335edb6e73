"""Test SavedModels of text generation: Keras's texts, and errors raised in the graph."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, generation, models, tasks, tokenizers
from keras_llm.errors import ExportError, InputError
from keras_llm.export.saved_model.signatures import module_of
from keras_llm.export.saved_model.signatures.loop import ALL_SETTINGS
from keras_llm.export.saved_model.verify import verification_of
from keras_llm.export.saved_model.worker import run_calls

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def chat_task(task):
    """Return the reference task with a chat template."""
    chat_task = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    assert chat_task.end_token_ids == task.end_token_ids
    chat_task._compiled = task._compiled  # share traced graphs
    return chat_task


@pytest.fixture(scope="module")
def served(chat_task, tmp_path_factory):
    """Return the folder and report of one export with all optional signatures."""
    folder = tmp_path_factory.mktemp("serving") / "reference"
    report = export.saved_model(chat_task, folder, version=3, beam_width=3)
    return folder, report


@pytest.fixture(scope="module")
def signatures(served):
    return tf.saved_model.load(str(served[0] / "3")).signatures


def generate(signatures, prompts, max_new_tokens=16, temperature=0.0, top_k=0, top_p=1.0, seed=0):
    def row(value, dtype):
        return tf.constant(np.ravel(value), dtype)

    return signatures["serving_default"](
        prompt=tf.constant(prompts, tf.string, shape=(len(prompts),)),
        max_new_tokens=row(max_new_tokens, tf.int32),
        temperature=row(temperature, tf.float32),
        top_k=row(top_k, tf.int32),
        top_p=row(top_p, tf.float32),
        seed=row(seed, tf.int32),
    )


def texts_of(outputs):
    return [text.decode() for text in outputs["text"].numpy()]


def test_greedy_text_matches_keras(task, signatures, held_out_prompts):
    assert len(held_out_prompts) >= 20
    expected = task(held_out_prompts, 16, temperature=0.0, return_details=True)
    outputs = generate(signatures, held_out_prompts)
    assert texts_of(outputs) == [row.text for row in expected]
    np.testing.assert_array_equal(outputs["num_tokens"], [row.num_tokens for row in expected])
    assert [r.decode() for r in outputs["finish_reason"].numpy()] == [
        row.finish_reason for row in expected
    ]
    np.testing.assert_allclose(
        outputs["log_probability"], [row.log_probability for row in expected], atol=1e-3
    )


def test_ragged_batch_matches_single_prompts(signatures, held_out_prompts):
    batched = texts_of(generate(signatures, held_out_prompts))
    assert batched == [texts_of(generate(signatures, [p]))[0] for p in held_out_prompts]


def test_sampling_settings_per_row(task, signatures):
    settings = {
        "temperature": [0.0, 0.7, 1.2],
        "top_k": [0, 20, 0],
        "top_p": [1.0, 1.0, 0.8],
        "seed": [1, 2, 3],
    }
    outputs = generate(signatures, ["The"] * 3, [5, 12, 9], **settings)
    for row, (count, text) in enumerate(zip([5, 12, 9], texts_of(outputs), strict=True)):
        row_settings = {name: values[row] for name, values in settings.items()}
        assert text == task("The", count, **row_settings)


def test_scores_match_keras(task, signatures, held_out_prompts):
    outputs = signatures["score"](text=tf.constant(held_out_prompts))
    np.testing.assert_allclose(outputs["log_probability"], task.score(held_out_prompts), atol=1e-3)
    np.testing.assert_array_equal(
        outputs["num_tokens"], [len(task.tokenizer.encode(p)) for p in held_out_prompts]
    )


def test_signature_names_and_types(signatures, task):
    def rows(specs):
        return {
            name: (spec.dtype.name, None if spec.shape.rank is None else spec.shape.as_list())
            for name, spec in specs.items()
        }

    names = {
        "generate",
        "generate_extended",
        "score",
        "tokenize",
        "detokenize",
        "prefill",
        "decode",
        "is_end",
    }
    assert set(signatures) == {"serving_default", "chat", "beam_search", *names}
    assert set(module_of(task).functions()) == names  # without chat template and beam width
    for name in ("serving_default", "generate"):
        assert rows(signatures[name].structured_input_signature[1]) == {
            "prompt": ("string", [None]),
            "max_new_tokens": ("int32", [None]),
            "temperature": ("float32", [None]),
            "top_k": ("int32", [None]),
            "top_p": ("float32", [None]),
            "seed": ("int32", [None]),
        }
        assert rows(signatures[name].structured_outputs) == {
            "text": ("string", [None]),
            "num_tokens": ("int32", [None]),
            "log_probability": ("float32", [None]),
            "finish_reason": ("string", [None]),
            "truncated": ("bool", [None]),
        }
    assert rows(signatures["score"].structured_outputs) == {
        "log_probability": ("float32", [None]),
        "num_tokens": ("int32", [None]),
        "truncated": ("bool", [None]),
    }
    ids = ("int32", [None, None])
    assert rows(signatures["tokenize"].structured_outputs) == {
        "token_ids": ids,
        "lengths": ("int32", [None]),
    }
    assert rows(signatures["detokenize"].structured_input_signature[1]) == {
        "token_ids": ids,
        "lengths": ("int32", [None]),
    }
    assert rows(signatures["prefill"].structured_input_signature[1]) == {
        "token_ids": ids,
        "lengths": ("int32", [None]),
        "cache_length": ("int32", None),  # a scalar or one per row
    }
    config = task.model.config
    shape = [None, config.num_key_value_heads, None, config.head_dim]
    cache = {f"{k}_{i}": ("float32", shape) for i in range(config.num_layers) for k in "kv"}
    step = ("int32", [None, 1])
    inputs = rows(signatures["decode"].structured_input_signature[1])
    assert inputs == {"token_ids": step, "positions": step, **cache}
    for name in ("prefill", "decode"):
        outputs = rows(signatures[name].structured_outputs)
        assert outputs == {"logits": ("float32", [None, config.vocabulary_size]), **cache}


def test_tokenize_and_detokenize(task, signatures):
    texts = ["The value", "a", "é \u2581 🙂"]
    outputs = signatures["tokenize"](text=tf.constant(texts))
    rows = [task.tokenizer.encode_prompt(text) for text in texts]
    arrays = (outputs[name].numpy() for name in ("token_ids", "lengths"))
    for row, ids, count in zip(rows, *arrays, strict=True):
        assert ids[:count].tolist() == row and set(ids[count:]) <= {task.tokenizer.pad_id}
    detokenized = signatures["detokenize"](**outputs)["text"].numpy()
    assert [text.decode() for text in detokenized] == texts
    empty = signatures["tokenize"](text=tf.constant([], tf.string))
    assert empty["lengths"].shape == [0]


def test_prefill_and_decode_by_client(task, signatures, held_out_prompts):
    """Prefill and decode, with greedy choices made by the client, give the greedy text."""
    prompts = held_out_prompts[:3]
    ids = signatures["tokenize"](text=tf.constant(prompts))
    lengths = ids["lengths"].numpy()
    outputs = signatures["prefill"](**ids, cache_length=tf.constant(lengths.max() + 12))
    rows = []
    for step in range(12):
        rows.append(outputs.pop("logits").numpy().argmax(-1).astype("int32"))
        positions = tf.constant(lengths + step, tf.int32, shape=(3, 1))
        token_ids = tf.constant(rows[-1], tf.int32, shape=(3, 1))
        outputs = signatures["decode"](token_ids=token_ids, positions=positions, **outputs)
    expected = task(prompts, 12, temperature=0.0, return_details=True)
    for row, result in zip(np.transpose(rows).tolist(), expected, strict=True):
        assert row[: result.num_tokens] == result.token_ids


def test_long_prompt_keeps_last_tokens(task, signatures):
    words = " ".join(f"word{i}" for i in range(200))
    ids = task.tokenizer.encode(words)
    max_length = task.model.config.max_length
    assert len(ids) > max_length
    for budget, kept in ((10, max_length - 10), (max_length, max_length // 2)):
        outputs = generate(signatures, ["The", words], budget)
        assert outputs["truncated"].numpy().tolist() == [False, True]
        tail = task.tokenizer.decode(ids[1 - kept :])  # without the begin token
        assert task.tokenizer.encode(tail) == ids[1 - kept :]
        assert texts_of(outputs) == task(["The", tail], budget, temperature=0.0)
    scored = signatures["score"](text=tf.constant(["The", words]))
    assert scored["truncated"].numpy().tolist() == [False, True]
    assert scored["num_tokens"].numpy().tolist()[1] == max_length
    head = task.tokenizer.decode(ids[:max_length])
    assert task.tokenizer.encode(head) == ids[:max_length]
    np.testing.assert_allclose(scored["log_probability"][1], task.score(head), atol=1e-3)


def test_invalid_utf8_is_replaced(task, signatures):
    invalid = [b"The \xff value", b"\xc3", b"\xed\xa0\x80x"]
    repaired = ["The \ufffd value", "\ufffd", "\ufffd\ufffd\ufffdx"]
    assert texts_of(generate(signatures, invalid)) == task(repaired, 16, temperature=0.0)
    scores = signatures["score"](text=tf.constant(invalid))["log_probability"]
    np.testing.assert_allclose(scores, task.score(repaired), atol=1e-3)


def test_invalid_step_inputs_raise_error(task, signatures):
    def assert_raises(message, name, **inputs):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures[name](**inputs)

    ids, lengths = tf.constant([[5, 6, 7]]), tf.constant([3])
    size = task.model.config.vocabulary_size
    prefill = {"token_ids": ids, "lengths": lengths, "cache_length": tf.constant(8)}
    outputs = signatures["prefill"](**prefill)
    outputs.pop("logits")
    step = {"token_ids": tf.constant([[5]]), "positions": tf.constant([[3]]), **outputs}
    for change, message in (
        ({"token_ids": ids + size}, "token_ids must be in 0"),
        ({"token_ids": ids - 9}, "token_ids must be in 0"),
        ({"token_ids": ids[:0], "lengths": lengths[:0]}, "token_ids must not be empty"),
        ({"lengths": tf.constant([4])}, r"lengths must be in 1 \.\. T"),
        ({"lengths": tf.constant([0])}, r"lengths must be in 1 \.\. T"),
        ({"lengths": tf.constant([1, 2])}, "lengths must have one value for each row"),
        ({"cache_length": tf.constant(2)}, "cache_length must be in T"),
        ({"cache_length": tf.constant(10**6)}, "cache_length must be in T"),
    ):
        assert_raises(message, "prefill", **{**prefill, **change})
    for change, message in (
        ({"token_ids": tf.constant([[size]])}, "token_ids must be in 0"),
        ({"positions": tf.constant([[8]])}, "positions must be slots of the cache"),
        ({"positions": tf.constant([[-1]])}, "positions must be slots of the cache"),
        ({"positions": tf.constant([[1], [2]])}, "positions must have the shape"),
        ({"k_0": tf.concat([outputs["k_0"]] * 2, 0)}, "k_0 must have B rows"),
    ):
        assert_raises(message, "decode", **{**step, **change})
    assert_raises("token_ids must be in 0", "detokenize", token_ids=ids + size, lengths=lengths)
    assert_raises("lengths must be in 0", "detokenize", token_ids=ids, lengths=lengths + 1)
    assert_raises("lengths must be in 0", "detokenize", token_ids=ids, lengths=lengths - 9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": ["a", ""]}, "prompt must not be empty"),
        ({"prompts": []}, "empty list"),
        ({"prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens must be an int > 0"),
        ({"prompts": ["a"], "temperature": -1.0}, "temperature"),
        ({"prompts": ["a"], "temperature": float("nan")}, "temperature"),
        ({"prompts": ["a"], "top_k": -1}, "top_k"),
        ({"prompts": ["a"], "top_p": 0.0}, "top_p"),
        ({"prompts": ["a"] * 3, "seed": [1, 2]}, "seed must have length 1 or that of prompt"),
    ],
)
def test_invalid_inputs_raise_error(signatures, arguments, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        generate(signatures, **arguments)


def call(signature, prompts, **settings):
    """Call a signature, with defaults for settings that are left out."""
    values = {"max_new_tokens": 12, **generation.Sampling()._asdict(), **settings}
    return signature(
        prompt=tf.constant(prompts),
        **{
            name: tf.constant(np.ravel(values[name]), spec.dtype)
            for name, spec in ALL_SETTINGS.items()
        },
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"seed": 5, "min_p": 0.05, "presence_penalty": 0.3, "frequency_penalty": 0.2},
        {"seed": 6, "typical_p": 0.8, "min_new_tokens": 12, "temperature": 0.7, "top_k": 40},
    ],
)
def test_all_settings_match_python(task, signatures, settings):
    outputs = call(signatures["generate_extended"], ["The", "A value"], **settings)
    expected = task(["The", "A value"], 12, return_details=True, **settings)
    assert texts_of(outputs) == [row.text for row in expected]
    for i, row in enumerate(expected):
        ids = outputs["token_ids"].numpy()[i, : row.num_tokens]
        assert ids.tolist() == row.token_ids
        log_p = outputs["token_log_probabilities"].numpy()[i, : row.num_tokens]
        np.testing.assert_allclose(log_p, row.token_log_probabilities, atol=1e-4)


def test_extended_settings_per_row(task, signatures):
    penalties = [1.0, 0.1, 1.3]
    outputs = call(
        signatures["generate_extended"], ["The"] * 3, temperature=0.0, repetition_penalty=penalties
    )
    expected = [task("The", 12, temperature=0.0, repetition_penalty=p) for p in penalties]
    assert texts_of(outputs) == expected and len(set(expected)) > 1


def test_chat_matches_python(chat_task, signatures):
    messages = [{"role": "user", "content": "What is a class?"}]
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 4}
    outputs = call(signatures["chat"], [chat_task.render(messages)], **settings)
    assert texts_of(outputs) == [chat_task.chat(messages, max_new_tokens=12, **settings)]
    conversation = chat_task.conversation()
    assert (
        conversation.say("What is a class?", max_new_tokens=12, **settings) == texts_of(outputs)[0]
    )
    # Special tokens that the template writes are plain text in other signatures.
    plain = call(signatures["generate_extended"], [chat_task.render(messages)], **settings)
    assert texts_of(plain) == [chat_task(chat_task.render(messages), 12, **settings)]


def test_beam_search_matches_python(task, signatures):
    prompts, penalties = ["The", "A value"], [0.0, 1.5]
    outputs = signatures["beam_search"](
        prompt=tf.constant(prompts),
        max_new_tokens=tf.constant([17]),
        length_penalty=tf.constant(penalties),
    )
    for i, penalty in enumerate(penalties):
        # These sizes match the export's own checks, whose graph is already traced.
        expected = task(
            prompts,
            17,
            beam_width=3,
            num_return_sequences=3,
            length_penalty=penalty,
            return_details=True,
        )[i]
        beam_texts = [text.decode() for text in outputs["text"].numpy()[i]]
        assert beam_texts == [row.text for row in expected]
        np.testing.assert_allclose(outputs["score"][i], [row.score for row in expected], atol=1e-4)


def test_signature_defaults(served):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((served[0] / "3" / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["generate_extended"]
    assert set(signature.defaults) == set(signature.inputs) - {"prompt"}
    values = {name: tf.make_ndarray(value) for name, value in signature.defaults.items()}
    assert values["temperature"].tolist() == [1.0] and values["temperature"].dtype == "float32"
    assert values["max_new_tokens"].tolist() == [64] and values["seed"].dtype == "int32"
    assert set(saved.meta_graphs[0].signature_def["score"].defaults) == set()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_p": 1.5}, "min_p must be in"),
        ({"top_k": 10**6}, "top_k must be at most"),
        ({"typical_p": 0.0}, "typical_p must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be"),
        ({"min_new_tokens": [1, 2, 3]}, "min_new_tokens must have length 1"),
    ],
)
def test_invalid_settings_raise_error(signatures, settings, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(signatures["generate_extended"], ["The", "A"], **settings)


def test_export_report(served, task):
    folder, report = served
    assert set(report["signatures"]) >= {"chat", "beam_search", "generate_extended"}
    assert report["parity"]["max_beam_score_error"] < 1e-3
    assert sorted(path.name for path in folder.iterdir()) == ["3", "export_report.json"]
    assert json.loads((folder / "export_report.json").read_text()) == {"3": report}
    assert report["parity"]["greedy_texts_equal"] is True
    assert report["parity"]["max_log_probability_error"] < 1e-3
    assert all(op.startswith("Sentencepiece") for op in report["non_core_ops"])
    assert report["non_core_ops"] and "While" not in report["non_core_ops"]
    weights = 4 * task.model.count_params()
    files = report["bytes"]
    assert files["total"] == sum(v for k, v in files.items() if k != "total")
    assert files["variables/variables.data-00000-of-00001"] < 1.1 * weights  # stored once


def test_saved_model_runs_without_keras_llm(served, task):
    program = """
import sys, tensorflow as tf, tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
out = serve(prompt=tf.constant(["The"]), max_new_tokens=tf.constant([12]),
            temperature=tf.constant([0.0]), top_k=tf.constant([0]), top_p=tf.constant([1.0]),
            seed=tf.constant([0]))
assert "keras_llm" not in sys.modules
sys.stdout.buffer.write(out["text"].numpy()[0])
"""
    command = [sys.executable, "-c", program, str(served[0] / "3")]
    completed = subprocess.run(command, capture_output=True, check=True)
    assert completed.stdout.decode() == task("The", 12, temperature=0.0)


GREEDY = {
    "max_new_tokens": np.array([12], "int32"),
    "temperature": np.array([0.0], "float32"),
    "top_k": np.array([0], "int32"),
    "top_p": np.array([1.0], "float32"),
    "seed": np.array([0], "int32"),
}


def test_saved_model_runs_in_c_library(served, task, in_c_library):
    prompts = ["The", "If the value é"]
    answer = in_c_library(served[0] / "3", "serving_default", {"prompt": prompts, **GREEDY})
    expected = task(prompts, 12, temperature=0.0, return_details=True)
    assert answer["text"] == [row.text for row in expected]
    assert answer["num_tokens"] == [row.num_tokens for row in expected]
    assert answer["truncated"] == [False, False]
    with pytest.raises(RuntimeError, match="Op type not registered 'Sentencepiece"):
        in_c_library(served[0] / "3", "serving_default", {"prompt": prompts}, text_ops=False)


@pytest.fixture(scope="module")
def mixed(task):
    """Return a task of the trained model's first layer in mixed_bfloat16."""
    config = dataclasses.replace(task.model.config, num_layers=1)
    model = models.causal_lm(config, dtype="mixed_bfloat16")
    trained = {weight.path: weight for weight in task.model.weights}
    for weight in model.weights:
        weight.assign(trained[weight.path])
    return tasks.TextGeneration(model, task.tokenizer)


def test_bfloat16_model(mixed, tmp_path):
    report = export.saved_model(mixed, tmp_path / "mixed")
    assert report["parity"]["greedy_texts_equal"] is True


def test_ring_caches_and_byte_pair_tokenizer(text_folder, tmp_path):
    texts = sorted(text_folder.iterdir())[:30]
    tokenizer = tokenizers.BytePair.train(texts, 400, pre_tokenizer="llama3")
    config = models.preset(
        "gemma3-tiny", vocabulary_size=400, sliding_window=4, initializer_range=0.3
    )
    assert [config.window(i) for i in range(config.num_layers)] == [4, None]
    byte_pair_task = tasks.TextGeneration(models.causal_lm(config), tokenizer)
    report = export.saved_model(byte_pair_task, tmp_path / "served")
    assert report["parity"]["greedy_texts_equal"] is True
    export.litert(byte_pair_task, tmp_path / "model.tflite", prefill_lengths=[16])
    device = export.LiteRTModel(tmp_path / "model.tflite")
    prompt = "Two words, 12 numbers\n\n  and \U0001f642"
    assert device.generate(prompt, 12, temperature=0.0) == byte_pair_task(
        prompt, 12, temperature=0.0
    )


def test_invalid_versions_and_models_raise_error(served, task):
    with pytest.raises(InputError, match="exists"):
        export.saved_model(task, served[0], version=3)
    for version in (0, -1, "1", 1.0, 2**63):
        with pytest.raises(InputError, match="version"):
            export.saved_model(task, served[0], version=version)
    with pytest.raises(InputError, match="task"):
        export.saved_model(task.model, served[0], version=4)


def test_failed_verification_leaves_no_files(mixed, tmp_path, monkeypatch):
    decode = mixed.tokenizer.decode  # make Python differ from the graph
    monkeypatch.setattr(mixed.tokenizer, "decode", lambda ids: decode(ids) + "!")
    with pytest.raises(ExportError, match="greedy text"):
        export.saved_model(mixed, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_verification_fails_if_outputs_differ(chat_task, signatures):
    """Run each of the export's comparisons on the SavedModel's outputs, with one output changed."""
    checks = verification_of(chat_task, beam_width=3)
    checks.expect()
    calls = checks.calls()
    answers = run_calls(signatures, calls)
    names = [name for name, _ in calls]
    assert checks.compare(answers)["greedy_texts_equal"] is True

    def append_mark(texts):
        return [text + "!" for text in texts]

    def add_error(numbers):
        return (np.array(numbers) + 0.1).tolist()

    for signature, output, change, message in (
        ("serving_default", "text", append_mark, "greedy text 0"),
        ("serving_default", "log_probability", add_error, "log-probabilities .* by 0.1"),
        ("score", "log_probability", add_error, r"scores .* differ from Keras by 0\.1"),
        ("tokenize", "token_ids", lambda ids: (np.array(ids) + 1).tolist(), "token ids 0"),
        ("detokenize", "text", append_mark, "text 0"),
        ("is_end", "is_end", lambda ends: (~np.array(ends)).tolist(), "ends 0"),
        ("prefill", "logits", add_error, r"logits of the steps .* by 0\.1"),
        ("decode", "logits", add_error, r"logits of the steps .* by 0\.1"),
        ("generate_extended", "text", append_mark, "text 0"),
        ("chat", "text", append_mark, "answer 0"),
        (
            "beam_search",
            "text",
            lambda rows: [append_mark(row) for row in rows],
            "texts of beams 0",
        ),
        ("beam_search", "score", add_error, r"scores of beams .* by 0\.1"),
    ):
        changed, index = list(answers), names.index(signature)
        changed[index] = {**answers[index], output: change(answers[index][output])}
        with pytest.raises(ExportError, match=f"^{message}"):
            checks.compare(changed)
