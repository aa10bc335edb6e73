"""`make test-jax`: two devices learn what one does, and TensorFlow exports what JAX has trained."""

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
# On a busy machine a device may wait for the other for longer than the 40 s that XLA allows.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
TWO = f"--xla_force_host_platform_device_count=2 {PATIENT}"


def process(command, backend="jax", devices=TWO):
    env = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(name, folder, **where):
    process([str(RUN), name, str(folder)], **where)
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jax")


@pytest.fixture(scope="module")
def expected(folder):
    return run("one", folder, devices="")


def assert_same(found, expected):
    assert found["weights"].keys() == expected["weights"].keys()
    for path, values in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][path], values, rtol=0, atol=1e-5, err_msg=path)
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)


def test_two_devices_that_split_the_batch_learn_what_one_does(folder, expected):
    found = run("data", folder)
    assert_same(found, expected)
    assert found["parts"] == expected["parts"]  # all weights are on each


def test_two_devices_that_split_the_model_learn_what_one_does_and_tensorflow_exports_it(
    folder, expected
):
    found = run("model", folder)
    assert_same(found, expected)
    for path, parts in {
        "token_embedding/embeddings": (2, 1),
        "block_0/self_attention/query/kernel": (1, 2),
        "block_0/self_attention/output/kernel": (2, 1),
        "block_0/feed_forward/up/kernel": (1, 2),
        "block_0/feed_forward/down/kernel": (2, 1),
        "block_0/self_attention_norm/scale": (1,),
    }.items():
        whole = expected["parts"][path]
        assert found["parts"][path] == [n // part for n, part in zip(whole, parts, strict=True)]
    again = run("tensorflow", folder, backend="tensorflow")
    assert again["weights"] == found["weights"]
    np.testing.assert_allclose(again["logits"], found["logits"], atol=1e-4)
    assert again["text"] and again["text"] == again["served"]


def test_a_broken_run_goes_on_with_the_same_bits(folder):
    found = run("resumed", folder)
    assert found["left"] == ["step_0000000002.checkpoint.npz"]
    assert found["again"] == found["whole"]


def test_what_cannot_be_split_is_refused(folder):
    patterns = [
        "validation_data.*has 3 rows.*2 devices",
        "`x` has 3 rows",
        "`x` has 3 rows",
        "`x` has an unknown number of rows",
        "model_devices.*divide the 2 devices, got 3",
        "KERAS_BACKEND=tensorflow",
    ]
    for told, pattern in zip(run("refused", folder), patterns, strict=True):
        assert re.search(pattern, told or ""), (told, pattern)


def test_every_projection_of_every_family_has_its_layout():
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
        found = [key for key in layouts if re.fullmatch(key, variable.path)]
        assert len(found) <= 1
        if found:
            used.add(found[0])
            assert len(layouts[variable.path].axes) == len(variable.shape)
        else:
            whole = r"norm|bias|router|masked_lm_head|position|segment|relative"
            assert re.search(whole, variable.path), variable.path
    assert used == set(layouts)


@pytest.mark.parametrize(
    "kind, name",
    [
        *(("jax_data", name) for name in ("masked_lm", "classes", "translation", "cbow")),
        *(("jax_model", name) for name in ("spans", "quiz", "code_generation", "glove")),
        *itertools.product(("jax_data", "jax_model"), ("chatbot", "preference_tuning")),
    ],
)
def test_a_recipe_trains_and_measures_on_two_devices(name, kind, recipe_commands, folder):
    command = recipe_commands.get(name, recipe_commands["skip_gram"])
    if name in ("cbow", "glove"):
        command = [*command, "--objective", name]
    chatbot = f"{folder / 'chatbot'}_{kind}"  # preference_tuning goes on from it
    command = [chatbot if word == "chatbot" and i else word for i, word in enumerate(command)]
    out = pathlib.Path(chatbot) if name == "chatbot" else folder / f"{kind}_{name}"
    process(["-m", "keras_llm", "train", *command, "--out", str(out), "--distribution", kind])
    metrics = json.loads((out / "metrics.json").read_text())
    _, losses, held_out = zip(*metrics["training"]["history"], strict=True)
    assert np.isfinite(losses + held_out).all()
    assert losses[-1] < losses[0] or len(losses) == 1


def test_the_steps_of_recipes_are_compiled():
    trainer = training.Trainer(models.causal_lm(models.preset("llama-tiny")))
    runs.compiled(flags.Options(out="m"), trainer, steps=10)
    assert trainer.jit_compile is True  # a step is interpreted on JAX without


@pytest.mark.parametrize("kind", ["jax_data", "jax_model"])
def test_a_recipe_trains_on_two_devices_and_tensorflow_exports_it(kind, text_folder, tmp_path):
    out = tmp_path / "model"
    train = ["train", "text_generation", "--smoke", "--out", out, "--data", text_folder]
    told = process(
        ["-m", "keras_llm", *map(str, train), "--prompt", "The", "--distribution", kind, "--json"]
    )
    metrics = json.loads(told.splitlines()[-1])
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    export = ["-m", "keras_llm", "export", out, "--to", "saved_model", "--out", tmp_path / "served"]
    process(map(str, export), backend="tensorflow")
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()
