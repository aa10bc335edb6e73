"""Compare training on two JAX devices with one, and export JAX models with TensorFlow."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_llm import models, training
from keras_llm.recipes.common import flags, runs

RUN = pathlib.Path(__file__).with_name("distributed_run.py")
# On a busy machine, a device may wait for the other longer than XLA's limit of 40 s.
LONG_TIMEOUT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
TWO_DEVICES = f"--xla_force_host_platform_device_count=2 {LONG_TIMEOUT}"


def run_python(command, backend="jax", devices=TWO_DEVICES):
    env = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    completed = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def run(name, folder, **options):
    run_python([str(RUN), name, str(folder)], **options)
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jax")


@pytest.fixture(scope="module")
def expected(folder):
    return run("single_device", folder, devices="")


def assert_same(actual, expected):
    assert actual["weights"].keys() == expected["weights"].keys()
    for path, values in expected["weights"].items():
        np.testing.assert_allclose(actual["weights"][path], values, rtol=0, atol=1e-5, err_msg=path)
    for name, values in expected["history"].items():
        np.testing.assert_allclose(actual["history"][name], values, rtol=1e-4)


def test_data_parallel_matches_one_device(folder, expected):
    actual = run("data", folder)
    assert_same(actual, expected)
    assert actual["shards"] == expected["shards"]  # each device has all weights


def test_tensor_parallel_matches_one_device_and_is_exported(folder, expected):
    actual = run("model", folder)
    assert_same(actual, expected)
    for path, parts in {
        "token_embedding/embeddings": (2, 1),
        "block_0/self_attention/query/kernel": (1, 2),
        "block_0/self_attention/output/kernel": (2, 1),
        "block_0/feed_forward/up/kernel": (1, 2),
        "block_0/feed_forward/down/kernel": (2, 1),
        "block_0/self_attention_norm/scale": (1,),
    }.items():
        full = expected["shards"][path]
        assert actual["shards"][path] == [n // part for n, part in zip(full, parts, strict=True)]
    loaded = run("tensorflow", folder, backend="tensorflow")
    assert loaded["weights"] == actual["weights"]
    np.testing.assert_allclose(loaded["logits"], actual["logits"], atol=1e-4)
    assert loaded["text"] and loaded["text"] == loaded["served"]


def test_resume_is_bit_exact(folder):
    results = run("resumed", folder)
    assert results["checkpoints"] == ["step_0000000002.checkpoint.npz"]
    assert results["resumed"] == results["uninterrupted"]


def test_unsupported_options_raise_error(folder):
    patterns = [
        "validation_data.*has 3 rows.*2 devices",
        "`x` has 3 rows",
        "`x` has 3 rows",
        "`x` has an unknown number of rows",
        "model_devices.*divide the 2 devices, got 3",
        "KERAS_BACKEND=tensorflow",
    ]
    for error, pattern in zip(run("unsupported", folder), patterns, strict=True):
        assert re.search(pattern, error or ""), (error, pattern)


def test_all_projections_have_layouts():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layouts = training.layout_map(mesh)
    sizes = {"vocabulary_size": 64, "num_layers": 1}
    built = [
        models.causal_lm(models.preset("llama-tiny", **sizes)),
        models.causal_lm(models.preset("llama-tiny", **sizes, tie_embeddings=False)),
        models.causal_lm(models.preset("llama-tiny", **sizes, num_experts=2, experts_per_token=1)),
        models.masked_lm(models.preset("bert-tiny", **sizes)),
        models.seq2seq(models.preset("t5-tiny", vocabulary_size=64)),
    ]
    used = set()
    for variable in (v for model in built for v in model.trainable_variables):
        matches = [key for key in layouts if re.fullmatch(key, variable.path)]
        assert len(matches) <= 1
        if matches:
            used.add(matches[0])
            assert len(layouts[variable.path].axes) == len(variable.shape)
        else:
            replicated = r"norm|bias|router|masked_lm_head|position|segment|relative"
            assert re.search(replicated, variable.path), variable.path
    assert used == set(layouts)


@pytest.mark.parametrize(
    "kind, name",
    [
        *(("jax_data", name) for name in ("masked_lm", "classes", "translation", "cbow")),
        *(("jax_model", name) for name in ("spans", "quiz", "code_generation", "glove")),
        *itertools.product(("jax_data", "jax_model"), ("chatbot", "preference_tuning")),
    ],
)
def test_recipes_on_two_devices(name, kind, recipe_commands, folder):
    command = recipe_commands.get(name, recipe_commands["skip_gram"])
    if name in ("cbow", "glove"):
        command = [*command, "--objective", name]
    chatbot = f"{folder / 'chatbot'}_{kind}"  # preference_tuning starts from it
    command = [chatbot if word == "chatbot" and i else word for i, word in enumerate(command)]
    out = pathlib.Path(chatbot) if name == "chatbot" else folder / f"{kind}_{name}"
    run_python(["-m", "keras_llm", "train", *command, "--out", str(out), "--distribution", kind])
    metrics = json.loads((out / "metrics.json").read_text())
    _, losses, held_out = zip(*metrics["training"]["history"], strict=True)
    assert np.isfinite(losses + held_out).all()
    assert losses[-1] < losses[0] or len(losses) == 1


def test_recipe_steps_are_compiled():
    trainer = training.Trainer(models.causal_lm(models.preset("llama-tiny")))
    runs.compiled(flags.Options(out="m"), trainer, steps=10)
    assert trainer.jit_compile is True  # otherwise JAX interprets each step


@pytest.mark.parametrize("kind", ["jax_data", "jax_model"])
def test_recipe_on_two_devices_is_exported(kind, text_folder, tmp_path):
    out = tmp_path / "model"
    train = ["train", "text_generation", "--smoke", "--out", out, "--data", text_folder]
    output = run_python(
        ["-m", "keras_llm", *map(str, train), "--prompt", "The", "--distribution", kind, "--json"]
    )
    metrics = json.loads(output.splitlines()[-1])
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    export = ["-m", "keras_llm", "export", out, "--to", "saved_model", "--out", tmp_path / "served"]
    run_python(map(str, export), backend="tensorflow")
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()
