"""Train the models of docs/own_models.md until their texts are readable; export and serve them."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

import keras_llm
from keras_llm import export

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
PASSES = 150
PROMPTS = ["Types affect almost", "Objects are never explicitly"]  # of two paragraphs


def _sections():
    """Return the code before the models, and that of each model by title."""
    page = (ROOT / "docs/own_models.md").read_text("utf-8")
    first, *rest = re.split(r"^### (.*)$", page, flags=re.M)
    codes = [
        "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
        for text in (first, *rest[1::2])
    ]
    return codes[0], {title: code for title, code in zip(rest[::2], codes[1:], strict=True) if code}


SETUP, EXAMPLES = _sections()


@pytest.fixture(scope="module")
def namespace():
    """Run the code before the models, with as many passes as their texts need."""
    code, count = re.subn(r"^PASSES = 1$", f"PASSES = {PASSES}", SETUP, flags=re.M)
    assert count == 1
    names = {}
    exec(compile(code, "own_models.md", "exec"), names)
    return names


@pytest.fixture
def serve(tmp_path):
    """Function that serves a SavedModel in a process and returns a client."""
    started = []

    def start(base_path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "keras_llm", "serve", str(base_path), "--port", str(port)]
        command += ["--rest_api_port", "0"]
        with open(tmp_path / "serve.log", "w") as log:
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            started.append(subprocess.Popen(command, stderr=log, env=environment))
        return export.Client(f"localhost:{port}", base_path.name, timeout=120, retries=120)

    yield start
    for process in started:
        process.kill()
        process.wait()


def without_cache(task, prompt, count):
    """Return the greedy continuation, from the logits of the whole text at each step."""
    ids = list(task.tokenizer.encode_prompt(prompt))
    begin, length = len(ids), len(ids) + count
    while len(ids) < length and ids[-1] not in task.end_token_ids:
        padded = np.zeros((1, length), "int32")
        padded[0, : len(ids)] = ids
        logits = np.asarray(task.model(padded))[0, len(ids) - 1]
        ids.append(int(logits[: task.tokenizer.vocabulary_size].argmax()))
    return task.tokenizer.decode([i for i in ids[begin:] if i not in task.end_token_ids])


@pytest.fixture
def task_of(namespace, tmp_path, monkeypatch):
    """Function that runs the code of a model and returns its task."""
    monkeypatch.chdir(tmp_path)

    def run(title):
        exec(compile(EXAMPLES[title], title, "exec"), namespace)
        return namespace["task"]

    return run


def test_the_page_has_eight_models():
    assert len(EXAMPLES) == 8
    assert max(len(code.splitlines()) for code in EXAMPLES.values()) <= 60


@pytest.mark.parametrize("title", list(EXAMPLES)[:6])
def test_model_is_trained_exported_and_served(title, namespace, task_of, serve, tmp_path):
    task, text = task_of(title), "\n".join(namespace["paragraphs"])
    perplexity = task.evaluate(namespace["paragraphs"], sequence_length=64)["perplexity"]
    greedy = {"max_new_tokens": 90 if "Character" in title else 48, "temperature": 0.0}
    expected = task(PROMPTS, **greedy)
    assert expected == [without_cache(task, prompt, greedy["max_new_tokens"]) for prompt in PROMPTS]
    print(f"\n{title}: {task.model.count_params():,} weights, perplexity {perplexity:.2f}")
    for prompt, continuation in zip(PROMPTS, expected, strict=True):
        print(f"  {prompt!r} {continuation!r}")
        *words, _ = f"{prompt}{continuation}".split(" ")  # the last one may be cut
        triples = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
        assert len(triples) > 5
        assert sum(triple in text for triple in triples) >= 0.8 * len(triples)
    assert perplexity < 2

    task.save("task")
    assert keras_llm.load("task")(PROMPTS, **greedy) == expected
    task.export("saved_model", tmp_path / "saved_model")
    with serve(tmp_path / "saved_model") as client:
        assert client.generate(PROMPTS, **greedy) == expected
    task.export("litert", "own.tflite")
    report = task.export("litert_lm", "own.litertlm")
    assert report["litert_lm"]["greedy_texts_equal"] is True
    for path in ("own.tflite", "own.litertlm"):
        device = export.LiteRTModel(path)
        assert [device.generate(prompt, **greedy) for prompt in PROMPTS] == expected


def test_classifier(namespace, task_of, serve, tmp_path):
    task = task_of("7. Classifier as BERT's")
    texts = [text for text, _ in namespace["held_out"][::4]]
    accuracy = task.evaluate(namespace["held_out"])["accuracy"]
    print(f"\n{task.model.count_params():,} weights, accuracy {accuracy:.3f}")
    assert accuracy > 0.8
    expected = task(texts, truncate=True)
    assert len(set(expected)) == 3
    task.save("task")
    assert keras_llm.load("task")(texts, truncate=True) == expected
    task.export("saved_model", tmp_path / "saved_model")
    with serve(tmp_path / "saved_model") as client:
        assert list(client.predict("classify", {"text": texts})["label"]) == expected
    device = export.LiteRTModel("mobile/topics.tflite")
    assert [device.classify(text, truncate=True)["label"] for text in texts] == expected


def test_translator(namespace, task_of, serve, tmp_path):
    task = task_of("8. Translator")
    texts, references = zip(*namespace["held_out"], strict=True)
    greedy = {"max_new_tokens": 12, "temperature": 0.0}
    expected = task(list(texts), **greedy)
    correct = sum(x == y for x, y in zip(expected, references, strict=True)) / len(texts)
    print(f"\n{task.model.count_params():,} weights, {correct:.1%} correct")
    assert correct > 0.95
    task.save("task")
    assert keras_llm.load("task")(list(texts), **greedy) == expected
    some = list(texts[:20])
    with serve(tmp_path / "serving" / "dates") as client:
        outputs = client.predict("translate", {"text": some, **_per_row(greedy, 20)})
        assert list(outputs["translation"]) == expected[:20]
    task.export("litert", "dates.tflite")
    device = export.LiteRTModel("dates.tflite")
    assert [device.translate(text, **greedy) for text in some] == expected[:20]


def _per_row(settings, count):
    """Return settings as the inputs of a signature, one value per row."""
    kinds = {int: "int32", float: "float32"}
    return {name: np.full(count, value, kinds[type(value)]) for name, value in settings.items()}
