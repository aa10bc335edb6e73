"""Training on several replicas, beside one device; what is refused there. Several workers are in
tests/scale."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import training
from keras_llm.commands import entry_points
from keras_llm.errors import InputError

RUN = pathlib.Path(__file__).with_name("distributed_run.py")


def run(*cases):
    """The exit codes of cases, see distributed_run.py."""
    cases = [(name, str(folder), count) for name, folder, count in cases]
    done = subprocess.run(
        [sys.executable, str(RUN)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def outcome(folder, name):
    return json.loads((folder / f"{name}.json").read_text())["outcome"]


@pytest.fixture(scope="module")
def runs(text_folder, tmp_path_factory):
    """The folder of all cases, which one process imports TensorFlow for."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "texts").symlink_to(text_folder)
    names = ("one", "mirrored", "refused", "keras_mirrored", "resumed_on_replicas")
    codes, told = run(*((name, folder, 0) for name in (*names, "mirrored_recipe")))
    assert codes == [[0]] * 6, told
    return folder


def assert_same(found, expected):
    for ours, theirs in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert found["history"].keys() == expected["history"].keys()
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Muon", "classes", "pairs", "sentences"])
def test_two_replicas_learn_what_one_device_does(runs, name):
    expected = outcome(runs, "one")[name]
    assert expected["gradient_norm"] > 0.1  # the norm that is clipped to
    assert_same(outcome(runs, "mirrored")[name], expected)


def test_what_is_not_right_on_two_replicas_is_refused(runs):
    found = outcome(runs, "refused")
    assert found.pop("none") is None
    words = {
        "clipping": "global_clipnorm.*SGD.*each of 2 replicas",
        "accumulation": "gradient_accumulation_steps.*SGD",
        "float16": "mixed_float16.*strategy has 2",
        "jit_compile": "jit_compile.*strategy has 2",
        "steps_per_execution": "steps_per_execution.*strategy has 2",
        "length": "steps_per_epoch",
        "losses": "add_loss.*strategy has 2",
        "sum": "reduction 'sum'.*several replicas",
        "others": "ContrastiveLoss supports only one replica.*has 2",
    }
    assert found.keys() == words.keys()
    for name, pattern in words.items():
        assert re.search(pattern, found[name] or ""), (name, found[name])


def test_keras_still_needs_what_the_trainer_does_for_it(runs):
    """If this fails, Keras has mended itself: `replicas.step_logs` and `replicas.first_batch` (its
    trainer, keras-team/keras#20585) or what the optimizers take from `BaseOptimizer` may go."""
    assert keras.__version__.startswith("3.15."), "look whether they are still right"
    found = outcome(runs, "keras_mirrored")
    assert isinstance(found["uneven"], str), "the trainer takes uneven batches"
    assert np.abs(np.subtract(found["even"], found["one"])).max() > 1e-3, "it clips the sum"


def test_a_run_on_two_replicas_goes_on_with_the_bits_of_a_whole_one(runs):
    found = outcome(runs, "resumed_on_replicas")
    assert found["step"] == 8  # in the second epoch, a step before it was interrupted
    assert found["parts"] == found["whole"]
    assert len(found["whole"]["hashes"]) > 15
    assert len(found["whole"]["history"]["val_loss"]) == 2


def test_two_replicas_train_a_recipe(runs):
    assert outcome(runs, "mirrored_recipe") == 0
    metrics = json.loads((runs / "model" / "metrics.json").read_text())
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    assert keras_llm.load(runs / "model")("The", max_new_tokens=5, temperature=0.0)


def test_every_recipe_takes_every_distribution():
    for name in entry_points.recipes():
        options = entry_points.recipe(name).Options
        needed = {
            "preference_tuning": {"start": "m"},
            "word_vectors": {"objective": "cbow"},
        }.get(name, {})
        for kind in ("mirrored", "multi_worker", "jax_data", "jax_model"):
            options(out="m", distribution=kind, **needed)
        with pytest.raises(InputError, match="--distribution must be one of mirrored, multi_"):
            options(out="m", distribution="parameter_server", **needed)
        with pytest.raises(InputError, match=r"--export must be (left out|empty)"):
            options(out="m", distribution="mirrored", export="litert", **needed)


def test_skip_gram_does_not_train_on_jax():
    word_vectors = importlib.import_module("keras_llm.recipes.word_vectors").Options
    word_vectors(out="m", distribution="mirrored")
    for kind in ("jax_data", "jax_model"):
        with pytest.raises(InputError, match="--distribution must be mirrored or multi_worker"):
            word_vectors(out="m", distribution=kind)


def test_a_distribution_that_cannot_be_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for kind, words in (
        ("mirrored", "at least two devices"),
        ("multi_worker", "TF_CONFIG"),
        ("jax_data", "KERAS_BACKEND=jax"),
        ("jax_model", "KERAS_BACKEND=jax"),
        ("parameter_server", "kind.*mirrored"),
    ):
        with pytest.raises(InputError, match=words):
            training.set_distribution(kind)
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"):
        training.TensorParallel()
