"""Verify files for devices, on a small model and on SmolLM2: `make test-device`."""

import json
import math
import pathlib
import pydoc_data.topics
import subprocess
import sys
import venv

import numpy as np
import pytest

import keras_llm
from keras_llm import checkpoints, export
from keras_llm.export.litert.runtime.decoder import DecoderSteps
from keras_llm.recipes.corpora import smollm2 as published

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
PROMPTS, NEW_TOKENS = 50, 20


@pytest.fixture(scope="session")
def smollm2():
    return checkpoints.from_gguf(published.published())


@pytest.fixture(scope="module", params=["small", "smollm2"])
def case(request, tmp_path_factory):
    """A task, 50 prompts of 1 token up to all that fit, and a folder."""
    if request.param == "small":
        task, cache_length, chunks = request.getfixturevalue("task"), 128, [16]
    else:
        task, cache_length, chunks = request.getfixturevalue("smollm2"), 448, [64]
    options = {"cache_length": cache_length, "prefill_lengths": chunks}
    whole = "\n\n".join(pydoc_data.topics.topics.values())
    texts = [whole[begin : begin + 6000].strip() for begin in range(0, len(whole), 6000)]
    assert len(texts) >= PROMPTS
    room = cache_length - 1 - task.tokenizer.add_bos
    prompts = []
    for text, length in zip(texts, np.linspace(1, room, PROMPTS).astype(int), strict=False):
        # A cut may join tokens: take the longest beginning that encodes to so many.
        ids = task.tokenizer.encode(text[: 12 * length])[:length]
        prompt = task.tokenizer.decode(ids)
        while not prompt or len(task.tokenizer.encode(prompt)) > length:
            ids = ids[:-1] if len(ids) > 1 else task.tokenizer.encode(text[:1])
            prompt = task.tokenizer.decode(ids)
        prompts.append(prompt)
    lengths = [len(task.tokenizer.encode_prompt(prompt)) for prompt in prompts]
    assert max(lengths) == cache_length - 1 and sum(n > chunks[0] + 1 for n in lengths) > 20
    return task, prompts, options, tmp_path_factory.mktemp(request.param)


@pytest.fixture(scope="module")
def expected(case):
    """Keras's greedy texts, as far as the cache of the files reaches."""
    task, prompts, options, _ = case
    texts = []
    for begin in range(0, PROMPTS, 10):
        some = prompts[begin : begin + 10]
        for prompt, found in zip(
            some, task(some, NEW_TOKENS, temperature=0.0, return_details=True), strict=True
        ):
            room = options["cache_length"] - len(task.tokenizer.encode_prompt(prompt))
            texts.append(task.tokenizer.decode(found.token_ids[:room]))
    return texts


@pytest.fixture(scope="module")
def bundle(case):
    task, _, options, folder = case
    report = export.litert_lm(task, folder / "float.litertlm", **options)
    assert report["parity"]["greedy_texts_equal"] is True
    assert report["litert_lm"]["greedy_texts_equal"] is True
    return folder / "float.litertlm"


@pytest.mark.parametrize("runtime", ["compiled", "interpreter"])
def test_greedy_text_is_that_of_keras(case, expected, bundle, runtime):
    device = export.LiteRTModel(bundle, runtime=runtime)
    assert [device.generate(prompt, NEW_TOKENS, temperature=0.0) for prompt in case[1]] == expected


def test_greedy_text_is_that_of_keras_in_litert_lm(case, expected, bundle, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(case[1]))
    program = """
import json, pathlib, sys
from keras_llm.export.litert.litert_lm_worker import greedy
folder = pathlib.Path(sys.argv[2])
texts = greedy(sys.argv[1], json.loads((folder / "prompts.json").read_text()), int(sys.argv[3]))
(folder / "texts.json").write_text(json.dumps(texts))
"""
    command = [sys.executable, "-c", program, bundle, tmp_path, str(NEW_TOKENS)]
    subprocess.run(command, check=True)
    assert json.loads((tmp_path / "texts.json").read_text()) == expected


@pytest.mark.parametrize("quantization, bound", [("int8", 0.02), ("int4", 0.25)])
def test_quantised_files_are_as_good_as_their_report_says(case, quantization, bound):
    task, _, options, folder = case
    topics = list(pydoc_data.topics.topics.values())
    texts, others = [text[:600] for text in topics[60:68]], [text[:2000] for text in topics[:30]]
    path = folder / f"{quantization}.tflite"
    report = export.litert(
        task,
        path,
        quantization,
        held_out=texts,
        max_quality_loss=bound,
        calibration=others,
        **options,
    )
    told = report["quality"]
    device = export.LiteRTModel(path, runtime="interpreter")  # the other way to run it
    decoder, losses = DecoderSteps(device.runtime, device.manifest), []
    for text in texts:
        ids = device.tokenizer.encode_prompt(text)[: options["cache_length"]]
        for position, target in enumerate(ids[1:]):
            logits = decoder.step(ids[position], position).astype("float64")
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max())
            losses[-1] -= logits[target]
    assert len(losses) == told["tokens"]
    assert math.exp(np.mean(losses)) == pytest.approx(told["perplexity"], rel=2e-3)
    assert told["loss"] <= bound
    assert report["parity"]["top_1_agreement"] > 0.7


def test_the_runner_works_without_tensorflow(bundle, case, expected, tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = ["ai-edge-litert", "sentencepiece", "protobuf", "tokenizers", "jinja2", "filelock"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", *packages], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    program = """
import importlib.util, json, sys
for name in ("tensorflow", "keras", "torch", "jax"):
    assert importlib.util.find_spec(name) is None, name
from keras_llm import export
device = export.LiteRTModel(sys.argv[1])
count, prompts = int(sys.argv[3]), json.loads(sys.argv[2])
print(json.dumps([device.generate(prompt, count, temperature=0.0) for prompt in prompts]))
"""
    prompts = case[1][::10]
    command = [python, "-c", program, bundle, json.dumps(prompts), str(NEW_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected[::10]
