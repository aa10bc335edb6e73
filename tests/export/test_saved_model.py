"""The SavedModel: strings to strings, the same text as Keras, and refusals inside the graph."""

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
def chatty(task):
    """The reference task with a chat template."""
    chatty = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    assert chatty.end_token_ids == task.end_token_ids
    chatty._compiled = task._compiled  # what is traced for one is traced for both
    return chatty


@pytest.fixture(scope="module")
def served(chatty, tmp_path_factory):
    """One export for all tests of what a text generation can have."""
    folder = tmp_path_factory.mktemp("serving") / "reference"
    report = export.saved_model(chatty, folder, version=3, beam_width=3)
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


def texts(outputs):
    return [text.decode() for text in outputs["text"].numpy()]


def test_greedy_text_is_that_of_keras(task, signatures, held_out_prompts):
    assert len(held_out_prompts) >= 20
    expected = task(held_out_prompts, 16, temperature=0.0, return_details=True)
    outputs = generate(signatures, held_out_prompts)
    assert texts(outputs) == [row.text for row in expected]
    np.testing.assert_array_equal(outputs["num_tokens"], [row.num_tokens for row in expected])
    assert [r.decode() for r in outputs["finish_reason"].numpy()] == [
        row.finish_reason for row in expected
    ]
    np.testing.assert_allclose(
        outputs["log_probability"], [row.log_probability for row in expected], atol=1e-3
    )


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(signatures, held_out_prompts):
    together = texts(generate(signatures, held_out_prompts))
    assert together == [texts(generate(signatures, [p]))[0] for p in held_out_prompts]


def test_sampling_settings_are_inputs_of_each_row(task, signatures):
    settings = {
        "temperature": [0.0, 0.7, 1.2],
        "top_k": [0, 20, 0],
        "top_p": [1.0, 1.0, 0.8],
        "seed": [1, 2, 3],
    }
    outputs = generate(signatures, ["The"] * 3, [5, 12, 9], **settings)
    for row, (count, text) in enumerate(zip([5, 12, 9], texts(outputs), strict=True)):
        alone = {name: values[row] for name, values in settings.items()}
        assert text == task("The", count, **alone)


def test_scores_are_those_of_keras(task, signatures, held_out_prompts):
    outputs = signatures["score"](text=tf.constant(held_out_prompts))
    np.testing.assert_allclose(outputs["log_probability"], task.score(held_out_prompts), atol=1e-3)
    np.testing.assert_array_equal(
        outputs["num_tokens"], [len(task.tokenizer.encode(p)) for p in held_out_prompts]
    )


def test_signatures_are_named_and_typed(signatures, task):
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
    assert set(module_of(task).functions()) == names  # without a template and a width
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
        "cache_length": ("int32", None),  # a scalar, or one for each row
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


def test_text_becomes_ids_and_ids_text(task, signatures):
    texts = ["The value", "a", "é \u2581 🙂"]
    outputs = signatures["tokenize"](text=tf.constant(texts))
    rows = [task.tokenizer.encode_prompt(text) for text in texts]
    found = (outputs[name].numpy() for name in ("token_ids", "lengths"))
    for row, ids, count in zip(rows, *found, strict=True):
        assert ids[:count].tolist() == row and set(ids[count:]) <= {task.tokenizer.pad_id}
    back = signatures["detokenize"](**outputs)["text"].numpy()
    assert [text.decode() for text in back] == texts
    empty = signatures["tokenize"](text=tf.constant([], tf.string))
    assert empty["lengths"].shape == [0]


def test_a_client_can_drive_the_steps_itself(task, signatures, held_out_prompts):
    """Prefill and decode, with greedy choices made outside, give the greedy text."""
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


def test_a_prompt_that_is_too_long_keeps_its_last_tokens(task, signatures):
    words = " ".join(f"word{i}" for i in range(200))
    ids = task.tokenizer.encode(words)
    max_length = task.model.config.max_length
    assert len(ids) > max_length
    for budget, kept in ((10, max_length - 10), (max_length, max_length // 2)):
        outputs = generate(signatures, ["The", words], budget)
        assert outputs["truncated"].numpy().tolist() == [False, True]
        tail = task.tokenizer.decode(ids[1 - kept :])  # one token is the begin token
        assert task.tokenizer.encode(tail) == ids[1 - kept :]
        assert texts(outputs) == task(["The", tail], budget, temperature=0.0)
    scored = signatures["score"](text=tf.constant(["The", words]))
    assert scored["truncated"].numpy().tolist() == [False, True]
    assert scored["num_tokens"].numpy().tolist()[1] == max_length
    head = task.tokenizer.decode(ids[:max_length])
    assert task.tokenizer.encode(head) == ids[:max_length]
    np.testing.assert_allclose(scored["log_probability"][1], task.score(head), atol=1e-3)


def test_what_is_not_utf8_is_replaced(task, signatures):
    broken = [b"The \xff value", b"\xc3", b"\xed\xa0\x80x"]
    repaired = ["The \ufffd value", "\ufffd", "\ufffd\ufffd\ufffdx"]
    assert texts(generate(signatures, broken)) == task(repaired, 16, temperature=0.0)
    scores = signatures["score"](text=tf.constant(broken))["log_probability"]
    np.testing.assert_allclose(scores, task.score(repaired), atol=1e-3)


def test_the_steps_refuse_what_does_not_fit(task, signatures):
    def refused(words, name, **inputs):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            signatures[name](**inputs)

    ids, lengths = tf.constant([[5, 6, 7]]), tf.constant([3])
    size = task.model.config.vocabulary_size
    prefill = {"token_ids": ids, "lengths": lengths, "cache_length": tf.constant(8)}
    outputs = signatures["prefill"](**prefill)
    outputs.pop("logits")
    step = {"token_ids": tf.constant([[5]]), "positions": tf.constant([[3]]), **outputs}
    for change, words in (
        ({"token_ids": ids + size}, "token_ids must be in 0"),
        ({"token_ids": ids - 9}, "token_ids must be in 0"),
        ({"token_ids": ids[:0], "lengths": lengths[:0]}, "token_ids must not be empty"),
        ({"lengths": tf.constant([4])}, r"lengths must be in 1 \.\. T"),
        ({"lengths": tf.constant([0])}, r"lengths must be in 1 \.\. T"),
        ({"lengths": tf.constant([1, 2])}, "lengths must have one value for each row"),
        ({"cache_length": tf.constant(2)}, "cache_length must be in T"),
        ({"cache_length": tf.constant(10**6)}, "cache_length must be in T"),
    ):
        refused(words, "prefill", **{**prefill, **change})
    for change, words in (
        ({"token_ids": tf.constant([[size]])}, "token_ids must be in 0"),
        ({"positions": tf.constant([[8]])}, "positions must be slots of the cache"),
        ({"positions": tf.constant([[-1]])}, "positions must be slots of the cache"),
        ({"positions": tf.constant([[1], [2]])}, "positions must have the shape"),
        ({"k_0": tf.concat([outputs["k_0"]] * 2, 0)}, "k_0 must have B rows"),
    ):
        refused(words, "decode", **{**step, **change})
    refused("token_ids must be in 0", "detokenize", token_ids=ids + size, lengths=lengths)
    refused("lengths must be in 0", "detokenize", token_ids=ids, lengths=lengths + 1)
    refused("lengths must be in 0", "detokenize", token_ids=ids, lengths=lengths - 9)


@pytest.mark.parametrize(
    "arguments, words",
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
def test_the_graph_refuses_what_keras_refuses(signatures, arguments, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        generate(signatures, **arguments)


def call(signature, prompts, **settings):
    """With the defaults for what is left out."""
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
def test_every_setting_gives_the_text_of_python(task, signatures, settings):
    outputs = call(signatures["generate_extended"], ["The", "A value"], **settings)
    expected = task(["The", "A value"], 12, return_details=True, **settings)
    assert texts(outputs) == [row.text for row in expected]
    for i, row in enumerate(expected):
        ids = outputs["token_ids"].numpy()[i, : row.num_tokens]
        assert ids.tolist() == row.token_ids
        log_p = outputs["token_log_probabilities"].numpy()[i, : row.num_tokens]
        np.testing.assert_allclose(log_p, row.token_log_probabilities, atol=1e-4)


def test_each_row_has_settings_of_its_own(task, signatures):
    penalties = [1.0, 0.1, 1.3]
    outputs = call(
        signatures["generate_extended"], ["The"] * 3, temperature=0.0, repetition_penalty=penalties
    )
    expected = [task("The", 12, temperature=0.0, repetition_penalty=p) for p in penalties]
    assert texts(outputs) == expected and len(set(expected)) > 1


def test_a_chat_is_answered_as_in_python(chatty, signatures):
    messages = [{"role": "user", "content": "What is a class?"}]
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 4}
    outputs = call(signatures["chat"], [chatty.render(messages)], **settings)
    assert texts(outputs) == [chatty.chat(messages, max_new_tokens=12, **settings)]
    conversation = chatty.conversation()
    assert conversation.say("What is a class?", max_new_tokens=12, **settings) == texts(outputs)[0]
    # What the template writes as special tokens is plain text elsewhere.
    plain = call(signatures["generate_extended"], [chatty.render(messages)], **settings)
    assert texts(plain) == [chatty(chatty.render(messages), 12, **settings)]


def test_beams_are_those_of_python(task, signatures):
    prompts, penalties = ["The", "A value"], [0.0, 1.5]
    outputs = signatures["beam_search"](
        prompt=tf.constant(prompts),
        max_new_tokens=tf.constant([17]),
        length_penalty=tf.constant(penalties),
    )
    for i, penalty in enumerate(penalties):
        # The sizes of the export's own checks, whose graph is traced already.
        expected = task(
            prompts,
            17,
            beam_width=3,
            num_return_sequences=3,
            length_penalty=penalty,
            return_details=True,
        )[i]
        found = [text.decode() for text in outputs["text"].numpy()[i]]
        assert found == [row.text for row in expected]
        np.testing.assert_allclose(outputs["score"][i], [row.score for row in expected], atol=1e-4)


def test_a_server_is_told_what_may_be_left_out(served):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((served[0] / "3" / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["generate_extended"]
    assert set(signature.defaults) == set(signature.inputs) - {"prompt"}
    values = {name: tf.make_ndarray(value) for name, value in signature.defaults.items()}
    assert values["temperature"].tolist() == [1.0] and values["temperature"].dtype == "float32"
    assert values["max_new_tokens"].tolist() == [64] and values["seed"].dtype == "int32"
    assert set(saved.meta_graphs[0].signature_def["score"].defaults) == set()


@pytest.mark.parametrize(
    "settings, words",
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
def test_wrong_settings_are_refused(signatures, settings, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        call(signatures["generate_extended"], ["The", "A"], **settings)


def test_the_report_lies_beside_the_version(served, task):
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


def test_it_answers_in_a_process_without_keras_llm(served, task):
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
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode() == task("The", 12, temperature=0.0)


GREEDY = {
    "max_new_tokens": np.array([12], "int32"),
    "temperature": np.array([0.0], "float32"),
    "top_k": np.array([0], "int32"),
    "top_p": np.array([1.0], "float32"),
    "seed": np.array([0], "int32"),
}


def test_it_answers_in_the_c_library_that_servers_link(served, task, in_c_library):
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
    """The trained model's first layer in bfloat16: a second one would be as this one."""
    config = dataclasses.replace(task.model.config, num_layers=1)
    model = models.causal_lm(config, dtype="mixed_bfloat16")
    trained = {weight.path: weight for weight in task.model.weights}
    for weight in model.weights:
        weight.assign(trained[weight.path])
    return tasks.TextGeneration(model, task.tokenizer)


def test_a_bfloat16_model(mixed, tmp_path):
    report = export.saved_model(mixed, tmp_path / "mixed")
    assert report["parity"]["greedy_texts_equal"] is True


def test_ring_caches_and_a_byte_pair_tokenizer_that_rides_along(text_folder, tmp_path):
    texts = sorted(text_folder.iterdir())[:30]
    tokenizer = tokenizers.BytePair.train(texts, 400, pre_tokenizer="llama3")
    config = models.preset(
        "gemma3-tiny", vocabulary_size=400, sliding_window=4, initializer_range=0.3
    )
    assert [config.window(i) for i in range(config.num_layers)] == [4, None]
    bytewise = tasks.TextGeneration(models.causal_lm(config), tokenizer)
    report = export.saved_model(bytewise, tmp_path / "served")
    assert report["parity"]["greedy_texts_equal"] is True
    export.litert(bytewise, tmp_path / "model.tflite", prefill_lengths=[16])
    device = export.LiteRTModel(tmp_path / "model.tflite")
    prompt = "Two words, 12 numbers\n\n  and \U0001f642"
    assert device.generate(prompt, 12, temperature=0.0) == bytewise(prompt, 12, temperature=0.0)


def test_a_version_is_refused_or_replaced(served, task):
    with pytest.raises(InputError, match="exists"):
        export.saved_model(task, served[0], version=3)
    for version in (0, -1, "1", 1.0):
        with pytest.raises(InputError, match="version"):
            export.saved_model(task, served[0], version=version)
    with pytest.raises(InputError, match="task"):
        export.saved_model(task.model, served[0], version=4)


def test_an_export_that_differs_from_the_model_leaves_nothing(mixed, tmp_path, monkeypatch):
    decode = mixed.tokenizer.decode  # Python no longer as the graph
    monkeypatch.setattr(mixed.tokenizer, "decode", lambda ids: decode(ids) + "!")
    with pytest.raises(ExportError, match="greedy text"):
        export.saved_model(mixed, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_verification_fails_where_answers_differ(chatty, signatures):
    """Each of the export's comparisons, with what the SavedModel answers and that changed."""
    checks = verification_of(chatty, beam_width=3)
    checks.expect()
    calls = checks.calls()
    answers = run_calls(signatures, calls)
    names = [name for name, _ in calls]
    assert checks.compare(answers)["greedy_texts_equal"] is True

    def longer(texts):
        return [text + "!" for text in texts]

    def more(numbers):
        return (np.array(numbers) + 0.1).tolist()

    for signature, output, change, words in (
        ("serving_default", "text", longer, "greedy text 0"),
        ("serving_default", "log_probability", more, "log-probabilities .* by 0.1"),
        ("score", "log_probability", more, r"scores .* differ from Keras by 0\.1"),
        ("tokenize", "token_ids", lambda ids: (np.array(ids) + 1).tolist(), "token ids 0"),
        ("detokenize", "text", longer, "text 0"),
        ("is_end", "is_end", lambda ends: (~np.array(ends)).tolist(), "ends 0"),
        ("prefill", "logits", more, r"logits of the steps .* by 0\.1"),
        ("decode", "logits", more, r"logits of the steps .* by 0\.1"),
        ("generate_extended", "text", longer, "text 0"),
        ("chat", "text", longer, "answer 0"),
        ("beam_search", "text", lambda rows: [longer(row) for row in rows], "texts of beams 0"),
        ("beam_search", "score", more, r"scores of beams .* by 0\.1"),
    ):
        changed, index = list(answers), names.index(signature)
        changed[index] = {**answers[index], output: change(answers[index][output])}
        with pytest.raises(ExportError, match=f"^{words}"):
            checks.compare(changed)
