"""Test the sandbox: hostile programs fail without side effects, harmless ones pass."""

import pytest

from keras_llm.errors import InputError
from keras_llm.recipes.common import code_evaluation, sandbox


def test_program_passes_or_fails():
    harmless = "import collections, heapq, math, random, re, typing\nassert math.gcd(12, 18) == 6"
    assert sandbox.run_program(harmless) == (True, "passed")
    assert sandbox.run_program("assert 1 == 2") == (False, "failed AssertionError")
    assert sandbox.run_program("def f(:") == (False, "failed SyntaxError")
    assert sandbox.run_program("print('x' * 10**6)") == (True, "passed")


@pytest.mark.parametrize(
    "program, end",
    [
        ("while True: pass", ("killed", "out of time")),
        ("import time; time.sleep(60)", ("out of time",)),
        ("x = bytearray(10**10)", ("failed MemoryError",)),
        ("raise SystemExit(0)", ("failed SystemExit",)),
        ("import os; os._exit(0)", ("killed",)),
        ("import os; os.fork()", ("failed PermissionError",)),
        ("import subprocess; subprocess.run(['true'])", ("failed PermissionError",)),
        ("import socket; socket.socket()", ("failed PermissionError",)),
        ("import os; os.kill(os.getppid(), 9)", ("failed PermissionError",)),
        ("import os\nwhile True: os.write(3, b'x' * 9999)", None),
        ("import ctypes; ctypes.string_at(0)", ("killed",)),
    ],
)
def test_hostile_program_is_stopped(program, end):
    passed, told = sandbox.run_program(program, seconds=1)
    assert not passed and (end is None or told in end)
    assert len(told) < 1000


def test_files_cannot_be_changed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep")
    before = victim.stat()
    for action in (
        "open(victim, 'w')",
        "open(victim, 'a')",
        "open(victim + '2', 'x')",
        "os.open(victim, os.O_RDONLY | os.O_TRUNC)",
        "os.remove(victim)",
        "os.rename(victim, victim + '3')",
        "os.truncate(victim, 0)",
        "os.chmod(victim, 0)",
        "os.utime(victim)",
        "os.link(victim, victim + '4')",
        "os.symlink(victim, victim + '5')",
        "os.mkdir(victim + '6')",
        "open('here', 'w')",
    ):
        program = f"import os\nvictim = {str(victim)!r}\ntry:\n    {action}\n"
        program += "except OSError: pass\nelse: raise ValueError"
        assert sandbox.run_program(program) == (True, "passed"), action
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    after = victim.stat()
    assert victim.read_text() == "keep" and after.st_mode == before.st_mode
    assert after.st_mtime_ns == before.st_mtime_ns


def test_nothing_runs_without_a_sandbox(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    text = sandbox._CHILD.read_text()
    assert "= 444, 446" in text
    child.write_text(text.replace("= 444, 446", "= 9999, 9999"))  # a kernel without Landlock
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match="Landlock"):
        sandbox.run_program("pass")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(InputError, match="Linux"):
        sandbox.run_program("pass")


PROBLEM = {
    "prompt": 'def twice(x):\n    """Double it."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    "entry_point": "twice",
}


def test_solution_must_pass_the_tests_of_the_problem():
    assert code_evaluation.solved(PROBLEM, "    return 2 * x\n")
    assert not code_evaluation.solved(PROBLEM, "    return x + 1\n")
    assert not code_evaluation.solved(PROBLEM, "    return (\n")
    assert not code_evaluation.solved(PROBLEM, "    while True: pass\n", seconds=1)
