"""Runs killed by SIGKILL at random moments, five times each, beside one that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

RUN = pathlib.Path(__file__).parents[1] / "training" / "resumed_run.py"


def run(epochs, *runs):
    """The exit codes of runs, each a folder and a moment."""
    command = [sys.executable, str(RUN), str(epochs)]
    for folder, moment in runs:
        command += [str(folder / "checkpoints"), str(folder / "outcome.json"), moment]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def moments():
    """Five random ones, counted from where a run goes on, of which the first is inside a save."""
    seed = int(os.environ.get("KERAS_LLM_KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KERAS_LLM_KILL_SEED={seed}")  # shown if the test fails
    draw = random.Random(seed)

    def save():
        return f"save:{draw.randint(1, 2)}:{draw.random():.3f}"

    kinds = [
        save,
        lambda: f"step:{draw.randint(1, 4)}",
        lambda: f"after:{draw.randint(1, 3)}:{draw.uniform(0, 0.01):.4f}",
        lambda: "evaluation",
    ]
    return [save(), *(draw.choice(kinds)() for _ in range(4))]


def test_a_run_killed_five_times_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = moments()
    print(kills)
    codes = run(6, (whole, "never"), *((killed, moment) for moment in [*kills, "never"]))
    assert codes == [0, *[-signal.SIGKILL] * 5, 0]
    found, expected = (json.loads((f / "outcome.json").read_text()) for f in (killed, whole))
    assert found == expected
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 6
    names = sorted(path.name for path in (killed / "checkpoints").iterdir())
    # A kill between the last rename and the removal of an old one leaves that one.
    assert names[-2:] == ["step_0000000040.checkpoint.npz", "step_0000000042.checkpoint.npz"]
    assert len(names) < 4 and names[0].startswith("step_")
