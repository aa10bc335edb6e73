"""Training on several replicas and workers, beside one device; what is refused there."""

import importlib
import json
import pathlib
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import recipes, training
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
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    codes, told = run(("one", folder, 0), ("mirrored", folder, 0), ("worker", folder, 2))
    assert codes == [[0], [0], [0, 0]], told
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


@pytest.mark.parametrize("index", [0, 1])
def test_two_workers_learn_what_one_device_does(runs, index):
    assert_same(outcome(runs, f"worker_{index}")["AdamW"], outcome(runs, "one")["AdamW"])


def test_what_is_not_right_on_two_replicas_is_refused(tmp_path):
    codes, told = run(("refused", tmp_path, 0))
    assert codes == [[0]], told
    found = outcome(tmp_path, "refused")
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
        "others": "ContrastiveLoss is for one replica.*has 2",
    }
    assert found.keys() == words.keys()
    for name, pattern in words.items():
        assert re.search(pattern, found[name] or ""), (name, found[name])


def test_keras_still_needs_what_the_trainer_does_for_it(tmp_path):
    """If this fails, Keras has mended itself: `replicas.step_logs` and `replicas.first_batch` (its
    trainer, keras-team/keras#20585) or what the optimizers take from `BaseOptimizer` may go."""
    assert keras.__version__.startswith("3.15."), "look whether they are still right"
    codes, told = run(("keras_mirrored", tmp_path, 0), ("keras_worker", tmp_path, 2))
    assert codes == [[0], [0, 0]], told
    found = outcome(tmp_path, "keras_mirrored")
    assert isinstance(found["uneven"], str), "the trainer takes uneven batches"
    assert isinstance(outcome(tmp_path, "keras_worker_0"), str), "the trainer knows workers"
    assert np.abs(np.subtract(found["even"], found["one"])).max() > 1e-3, "it clips the sum"


def test_a_lost_worker_is_named_and_a_restart_ends_with_the_bits_of_a_whole_run(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    codes, told = run(("resumed", whole, 2), ("killed", broken, 2), ("resumed", broken, 2))
    assert codes == [[0, 0], [0, -signal.SIGKILL], [0, 0]], told
    error = outcome(broken, "killed_0")["error"]
    assert "worker 1 (127.0.0.1:" in error and "--resume" in error
    expected = outcome(whole, "resumed_0")
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 2
    for index in (0, 1):
        assert outcome(whole, f"resumed_{index}") == expected
        assert outcome(broken, f"resumed_{index}") == expected


def test_workers_that_see_other_checkpoints_are_refused(tmp_path):
    codes, told = run(("resumed", tmp_path, 2), ("without_folder", tmp_path, 2))
    assert codes == [[0, 0], [0, 0]], told
    for index in (0, 1):
        error = outcome(tmp_path, f"without_folder_{index}")["error"]
        assert "checkpoints must be the same on all workers, got [10, 0]" in error


def test_two_workers_train_a_recipe_and_the_first_writes_it(text_folder, tmp_path):
    (tmp_path / "texts").symlink_to(text_folder)
    codes, told = run(("recipe", tmp_path, 2))
    assert codes == [[0, 0]], told
    assert outcome(tmp_path, "recipe_0") == 0, told
    assert outcome(tmp_path, "recipe_1") == "exit None", told
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    assert keras_llm.load(tmp_path / "model")("The", max_new_tokens=5, temperature=0.0)


def test_every_recipe_takes_every_distribution():
    for name in recipes.RECIPES:
        options = importlib.import_module(f"keras_llm.recipes.{name}").Options
        needed = {
            "preference_tuning": {"start": "m"},
            "word_vectors": {"objective": "cbow"},
        }.get(name, {})
        for kind in ("mirrored", "multi_worker", "jax_data", "jax_model"):
            options(out="m", distribution=kind, **needed)
        with pytest.raises(InputError, match="--distribution must be of mirrored, multi_"):
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
        ("mirrored", "two devices"),
        ("multi_worker", "TF_CONFIG"),
        ("jax_data", "KERAS_BACKEND=jax"),
        ("jax_model", "KERAS_BACKEND=jax"),
        ("parameter_server", "kind.*mirrored"),
    ):
        with pytest.raises(InputError, match=words):
            training.set_distribution(kind)
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"):
        training.TensorParallel()
