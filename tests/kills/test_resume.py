"""Kill runs with SIGKILL, also at random moments, and compare them with uninterrupted ones."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

RUN = pathlib.Path(__file__).parents[1] / "training" / "resumed_run.py"


def run(epochs, *runs):
    """Return the exit codes of runs, each a folder and the moment at which it is killed."""
    command = [sys.executable, str(RUN), str(epochs)]
    for folder, moment in runs:
        command += [str(folder / "checkpoints"), str(folder / "outcome.json"), moment]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def random_moments():
    """Return five random moments, relative to where the run resumes; the first is within a save."""
    seed = int(os.environ.get("KERAS_LLM_KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KERAS_LLM_KILL_SEED={seed}")  # printed if the test fails
    rng = random.Random(seed)

    def save():
        return f"save:{rng.randint(1, 2)}:{rng.random():.3f}"

    kinds = [
        save,
        lambda: f"step:{rng.randint(1, 4)}",
        lambda: f"after:{rng.randint(1, 3)}:{rng.uniform(0, 0.01):.4f}",
        lambda: "evaluation",
    ]
    return [save(), *(rng.choice(kinds)() for _ in range(4))]


def test_run_killed_five_times_is_bit_exact(tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    kills = random_moments()
    print(kills)
    codes = run(6, (uninterrupted, "never"), *((killed, moment) for moment in [*kills, "never"]))
    assert codes == [0, *[-signal.SIGKILL] * 5, 0]
    actual, expected = (
        json.loads((f / "outcome.json").read_text()) for f in (killed, uninterrupted)
    )
    assert actual == expected
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 6
    names = sorted(path.name for path in (killed / "checkpoints").iterdir())
    # A kill between renaming a new checkpoint and removing an old one keeps the old one.
    assert names[-2:] == ["step_0000000040.checkpoint.npz", "step_0000000042.checkpoint.npz"]
    assert len(names) < 4 and names[0].startswith("step_")


def test_killed_run_resumes_bit_exact(tmp_path):
    """Kill a run in the middle of a save, and after a step that no checkpoint has."""
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    moments = ["save:2:0.5", "step:3", "never"]
    codes = run(3, (uninterrupted, "never"), *((killed, moment) for moment in moments))
    assert codes == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    actual, expected = (
        json.loads((f / "outcome.json").read_text()) for f in (killed, uninterrupted)
    )
    assert actual == expected
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 3
    names = sorted(path.name for path in (killed / "checkpoints").iterdir())
    # A kill between renaming a new checkpoint and removing an old one keeps the old one.
    assert names[-2:] == ["step_0000000020.checkpoint.npz", "step_0000000021.checkpoint.npz"]
    assert len(names) < 4 and names[0].startswith("step_")
