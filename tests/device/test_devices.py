"""Verify on-device files of a small model and of SmolLM2."""

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
    """Return a task, 50 prompts from 1 token to the longest that fit, options and a folder."""
    if request.param == "small":
        task, cache_length, chunks = request.getfixturevalue("task"), 128, [16]
    else:
        task, cache_length, chunks = request.getfixturevalue("smollm2"), 448, [64]
    options = {"cache_length": cache_length, "prefill_lengths": chunks}
    corpus = "\n\n".join(pydoc_data.topics.topics.values())
    texts = [corpus[begin : begin + 6000].strip() for begin in range(0, len(corpus), 6000)]
    assert len(texts) >= PROMPTS
    max_length = cache_length - 1 - task.tokenizer.add_bos
    prompts = []
    for text, length in zip(texts, np.linspace(1, max_length, PROMPTS).astype(int), strict=False):
        # Cutting may join tokens, so take the longest prefix that encodes to at most `length`.
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
    """Return Keras's greedy texts, cut to the cache length of the files."""
    task, prompts, options, _ = case
    texts = []
    for begin in range(0, PROMPTS, 10):
        batch = prompts[begin : begin + 10]
        for prompt, generation in zip(
            batch, task(batch, NEW_TOKENS, temperature=0.0, return_details=True), strict=True
        ):
            max_tokens = options["cache_length"] - len(task.tokenizer.encode_prompt(prompt))
            texts.append(task.tokenizer.decode(generation.token_ids[:max_tokens]))
    return texts


@pytest.fixture(scope="module")
def bundle(case):
    task, _, options, folder = case
    report = export.litert_lm(task, folder / "float.litertlm", **options)
    assert report["parity"]["greedy_texts_equal"] is True
    assert report["litert_lm"]["greedy_texts_equal"] is True
    return folder / "float.litertlm"


@pytest.mark.parametrize("runtime", ["compiled", "interpreter"])
def test_greedy_text_matches_keras(case, expected, bundle, runtime):
    device = export.LiteRTModel(bundle, runtime=runtime)
    assert [device.generate(prompt, NEW_TOKENS, temperature=0.0) for prompt in case[1]] == expected


def test_greedy_text_in_litert_lm_matches_keras(case, expected, bundle, tmp_path):
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
def test_quality_of_quantized_files_matches_report(case, quantization, bound):
    task, _, options, folder = case
    topics = list(pydoc_data.topics.topics.values())
    texts, calibration = (
        [text[:600] for text in topics[60:68]],
        [text[:2000] for text in topics[:30]],
    )
    path = folder / f"{quantization}.tflite"
    report = export.litert(
        task,
        path,
        quantization,
        held_out=texts,
        max_quality_loss=bound,
        calibration=calibration,
        **options,
    )
    quality = report["quality"]
    device = export.LiteRTModel(path, runtime="interpreter")  # not the default runtime
    decoder, losses = DecoderSteps(device.runtime, device.manifest), []
    for text in texts:
        ids = device.tokenizer.encode_prompt(text)[: options["cache_length"]]
        for position, target in enumerate(ids[1:]):
            logits = decoder.step(ids[position], position).astype("float64")
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max())
            losses[-1] -= logits[target]
    assert len(losses) == quality["tokens"]
    assert math.exp(np.mean(losses)) == pytest.approx(quality["perplexity"], rel=2e-3)
    assert quality["loss"] <= bound
    assert report["parity"]["top_1_agreement"] > 0.7


def test_litert_model_works_without_tensorflow(bundle, case, expected, tmp_path):
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
    completed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout.splitlines()[-1]) == expected[::10]
