"""Training over several workers, processes of this machine that talk by loopback."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import keras_llm

RUN = pathlib.Path(__file__).parents[1] / "training" / "distributed_run.py"


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


def assert_same(found, expected):
    for ours, theirs in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert found["history"].keys() == expected["history"].keys()
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cases = [("one", folder, 0), ("worker", folder, 2), ("keras_worker", folder, 2)]
    codes, told = run(*cases)
    assert codes == [[0], [0, 0], [0, 0]], told
    return folder


@pytest.mark.parametrize("index", [0, 1])
def test_two_workers_learn_what_one_device_does(runs, index):
    assert_same(outcome(runs, f"worker_{index}")["AdamW"], outcome(runs, "one")["AdamW"])


def test_keras_still_needs_what_the_trainer_does_for_it_over_workers(runs):
    """See the test of nearly this name in tests/training."""
    assert isinstance(outcome(runs, "keras_worker_0"), str), "the trainer knows workers"


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
