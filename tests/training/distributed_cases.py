"""Run cases of distributed_run.py and compare their results."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

RUN = pathlib.Path(__file__).with_name("distributed_run.py")


def run(*cases):
    """Return the exit codes of cases and the stderr of distributed_run.py."""
    cases = [(name, str(folder), count) for name, folder, count in cases]
    completed = subprocess.run(
        [sys.executable, str(RUN)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1]), completed.stderr


def load_outcome(folder, name):
    return json.loads((folder / f"{name}.json").read_text())["outcome"]


def assert_same(actual, expected):
    for ours, theirs in zip(actual["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert actual["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert actual["history"].keys() == expected["history"].keys()
    for name, values in expected["history"].items():
        np.testing.assert_allclose(actual["history"][name], values, rtol=1e-4)
