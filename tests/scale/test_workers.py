"""Test training on several workers (local processes on loopback) and on replicas."""

import json
import pathlib
import runpy
import signal

import keras
import numpy as np
import pytest

import keras_llm

CASES = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "training" / "distributed_cases.py"))
run, load_outcome, assert_same = (CASES[n] for n in ("run", "load_outcome", "assert_same"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cases = [("single_device", folder, 0), ("worker", folder, 2), ("keras_worker", folder, 2)]
    codes, stderr = run(*cases)
    assert codes == [[0], [0, 0], [0, 0]], stderr
    return folder


@pytest.fixture(scope="module")
def replica_runs(text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replica_runs")
    (folder / "texts").symlink_to(text_folder)
    names = ("single_device", "mirrored", "single_device_tasks", "mirrored_tasks")
    names += ("mirrored_recipe", "keras_mirrored", "resumed_on_replicas")
    codes, stderr = run(*((name, folder, 0) for name in names))
    assert codes == [[0]] * len(names), stderr
    return folder


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Muon"])
def test_two_replicas_match_one_device(replica_runs, name):
    expected = load_outcome(replica_runs, "single_device")[name]
    assert expected["gradient_norm"] > 0.1  # gradients are clipped to this norm
    assert_same(load_outcome(replica_runs, "mirrored")[name], expected)


def test_keras_still_requires_workarounds(replica_runs):
    """Check that Keras still requires our workarounds.

    If this fails, Keras was fixed: `replicas.step_logs` and `replicas.first_batch` (its trainer,
    keras-team/keras#20585) or what the optimizers take from `BaseOptimizer` can be removed.
    """
    assert keras.__version__.startswith("3.15."), "check whether the workarounds are still needed"
    weights = load_outcome(replica_runs, "keras_mirrored")
    assert isinstance(weights["uneven"], str), "Keras's trainer accepts uneven batches"
    assert np.abs(np.subtract(weights["even"], weights["one"])).max() > 1e-3, "Keras clips the sum"


def test_resume_on_two_replicas_is_bit_exact(replica_runs):
    results = load_outcome(replica_runs, "resumed_on_replicas")
    assert results["step"] == 8  # in the second epoch, one step before the interruption
    assert results["interrupted"] == results["uninterrupted"]
    assert len(results["uninterrupted"]["hashes"]) > 15
    assert len(results["uninterrupted"]["history"]["val_loss"]) == 2


@pytest.mark.parametrize("name", ["classes", "pairs", "sentences"])
def test_tasks_on_two_replicas_match_one_device(replica_runs, name):
    expected = load_outcome(replica_runs, "single_device_tasks")[name]
    assert expected["gradient_norm"] > 0.1  # gradients are clipped to this norm
    assert_same(load_outcome(replica_runs, "mirrored_tasks")[name], expected)


def test_recipe_on_two_replicas(replica_runs):
    assert load_outcome(replica_runs, "mirrored_recipe") == 0
    metrics = json.loads((replica_runs / "model" / "metrics.json").read_text())
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    assert keras_llm.load(replica_runs / "model")("The", max_new_tokens=5, temperature=0.0)


@pytest.mark.parametrize("index", [0, 1])
def test_two_workers_match_one_device(runs, index):
    expected = load_outcome(runs, "single_device")["AdamW"]
    assert_same(load_outcome(runs, f"worker_{index}")["AdamW"], expected)


def test_keras_still_requires_workarounds_over_workers(runs):
    """See `test_keras_still_requires_workarounds`."""
    assert isinstance(load_outcome(runs, "keras_worker_0"), str), "Keras supports workers now"


def test_lost_worker_is_named_and_resume_is_bit_exact(tmp_path):
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    cases = [("resumed", uninterrupted, 2), ("killed", interrupted, 2), ("resumed", interrupted, 2)]
    codes, stderr = run(*cases)
    assert codes == [[0, 0], [0, -signal.SIGKILL], [0, 0]], stderr
    error = load_outcome(interrupted, "killed_0")["error"]
    assert "worker 1 (127.0.0.1:" in error and "--resume" in error
    expected = load_outcome(uninterrupted, "resumed_0")
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 2
    for index in (0, 1):
        assert load_outcome(uninterrupted, f"resumed_{index}") == expected
        assert load_outcome(interrupted, f"resumed_{index}") == expected


def test_different_checkpoints_on_workers_raise_error(tmp_path):
    codes, stderr = run(("resumed", tmp_path, 2), ("without_folder", tmp_path, 2))
    assert codes == [[0, 0], [0, 0]], stderr
    for index in (0, 1):
        error = load_outcome(tmp_path, f"without_folder_{index}")["error"]
        assert "checkpoints must be the same on all workers, got [10, 0]" in error


def test_first_of_two_workers_writes_recipe_model(text_folder, tmp_path):
    (tmp_path / "texts").symlink_to(text_folder)
    codes, stderr = run(("recipe", tmp_path, 2))
    assert codes == [[0, 0]], stderr
    assert load_outcome(tmp_path, "recipe_0") == 0, stderr
    assert load_outcome(tmp_path, "recipe_1") == "exit None", stderr
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    assert keras_llm.load(tmp_path / "model")("The", max_new_tokens=5, temperature=0.0)
