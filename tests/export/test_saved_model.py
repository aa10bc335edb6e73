"""The SavedModel: strings to strings, the same text as Keras, and refusals inside the graph."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, models, tasks, tokenizers
from keras_llm.errors import ExportError, InputError


@pytest.fixture(scope="module")
def served(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "reference"
    report = export.saved_model(task, folder, version=3)
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


def test_signatures_are_named_and_typed(signatures):
    def rows(specs):
        return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}

    assert set(signatures) == {"serving_default", "generate", "score"}
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
        }
    assert rows(signatures["score"].structured_outputs) == {
        "log_probability": ("float32", [None]),
        "num_tokens": ("int32", [None]),
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"prompts": ["a", ""]}, "prompt must not be empty"),
        ({"prompts": []}, "empty list"),
        ({"prompts": ["word " * 300]}, "prompt must have at most 127 tokens"),
        ({"prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens must be positive"),
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


def test_the_report_lies_beside_the_version(served, task):
    folder, report = served
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


def test_a_bfloat16_model(task, tmp_path):
    model = models.causal_lm(task.model.config, dtype="mixed_bfloat16")
    model.set_weights(task.model.get_weights())
    mixed = tasks.TextGeneration(model, task.tokenizer)
    report = export.saved_model(mixed, tmp_path / "mixed")
    assert report["parity"]["greedy_texts_equal"] is True


def test_a_byte_pair_tokenizer_serves_and_rides_along(text_folder, tmp_path):
    texts = sorted(text_folder.iterdir())[:30]
    tokenizer = tokenizers.BytePair.train(texts, 400, pre_tokenizer="llama3")
    config = models.preset("llama-tiny", vocabulary_size=400, initializer_range=0.3)
    bytewise = tasks.TextGeneration(models.causal_lm(config), tokenizer)
    report = export.saved_model(bytewise, tmp_path / "served")
    assert report["parity"]["greedy_texts_equal"] is True
    export.litert(bytewise, tmp_path / "model.tflite", prefill_lengths=[16])
    device = export.LiteRTModel(tmp_path / "model.tflite")
    prompt = "Two words, 12 numbers\n\n  and \U0001f642"
    assert device.generate(prompt, 12) == bytewise(prompt, 12, temperature=0.0)


def test_a_model_with_ring_caches(task, tmp_path):
    config = models.preset("gemma3-tiny", sliding_window=4, initializer_range=0.3)
    windowed = tasks.TextGeneration(models.causal_lm(config), task.tokenizer)
    report = export.saved_model(windowed, tmp_path / "windowed")
    assert report["parity"]["greedy_texts_equal"] is True


def test_a_version_is_refused_or_replaced(served, task):
    with pytest.raises(InputError, match="exists"):
        export.saved_model(task, served[0], version=3)
    for version in (0, -1, "1", 1.0):
        with pytest.raises(InputError, match="version"):
            export.saved_model(task, served[0], version=version)
    with pytest.raises(InputError, match="task"):
        export.saved_model(task.model, served[0], version=4)


def test_an_export_that_differs_from_the_model_leaves_nothing(run_folder, tmp_path):
    broken = keras_llm.load(run_folder)
    decode = broken.tokenizer.decode
    broken.tokenizer.decode = lambda ids: decode(ids) + "!"  # Python no longer as the graph
    with pytest.raises(ExportError, match="greedy text"):
        export.saved_model(broken, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_an_export_with_other_weights_leaves_nothing(run_folder, tmp_path, monkeypatch):
    from keras_llm.export.signatures import TextGenerationModule

    broken = keras_llm.load(run_folder)
    scores = TextGenerationModule._score

    def shifted(self, text):
        outputs = scores(self, text)
        return {**outputs, "log_probability": outputs["log_probability"] + 0.1}

    monkeypatch.setattr(TextGenerationModule, "_score", shifted)
    with pytest.raises(ExportError, match=r"scores .* differ from Keras by 0\.1"):
        export.saved_model(broken, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []
