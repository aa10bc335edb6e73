"""Test that a program in the sandbox passes tests only with functions that return right values."""

import pytest

from keras_llm.recipes.common import code_evaluation, sandbox

PROBLEM = {
    "prompt": 'def twice(x):\n    """Double it."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    "entry_point": "twice",
}

# What a program can do to have a wrong function pass.
FORGERIES = {
    "write to all files": (
        "import os\n"
        "for number in range(64):\n"
        "    for text in (b'ready ', b'passed', b'\\n'):\n"
        "        try: os.write(number, text)\n"
        "        except OSError: pass"
    ),
    "write values to all files": (
        "import os\n"
        "for number in range(64):\n"
        "    for _ in range(3):\n"
        """        try: os.write(number, b'{"value": ["None", null]}\\n')\n"""
        "        except OSError: pass"
    ),
    "write and exit": "import os\nos.write(3, b'passed'); os.write(4, b'passed'); os._exit(0)",
    "files of the process": (
        "import os\n"
        "for number in range(64):\n"
        "    try: open(f'/proc/self/fd/{number}', 'wb', 0).write(b'passed')\n"
        "    except OSError: pass"
    ),
    "files of the parent": (
        "import os\n"
        "for number in range(64):\n"
        "    try: open(f'/proc/{os.getppid()}/fd/{number}', 'wb', 0).write(b'passed')\n"
        "    except OSError: pass"
    ),
    "memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')",
    "frames": (
        "import os, sys\nframe = sys._getframe()\n"
        "while frame:\n"
        "    for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:\n"
        "        if type(value) is int and 0 <= value < 64:\n"
        "            try: os.write(value, b'passed')\n"
        "            except OSError: pass\n"
        "    frame = frame.f_back"
    ),
    "garbage collector": (
        "import gc\n"
        "for thing in gc.get_objects():\n"
        "    if hasattr(thing, 'write'):\n"
        "        for text in (b'passed', 'passed'):\n"
        "            try: thing.write(text), thing.flush()\n"
        "            except Exception: pass"
    ),
    "the functions of the sandbox": (
        "import os, sys\n"
        "child = sys.modules['__main__']\n"
        "child.run_tests = lambda *rest: 'passed'\n"
        "child._encoded = lambda value: ('bool', True)"
    ),
    "run the sandbox again": "import sys\nsys.modules['__main__'].main()",
    "exit": "raise SystemExit(0)",
    "os._exit": "import os\nos._exit(0)",
    "at exit": "import atexit, os\natexit.register(os.write, 3, b'passed')",
    "at exit with success": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "fork": "import os\nif os.fork() == 0: os.write(3, b'passed')",
    "built-ins": (
        "import builtins\n"
        "builtins.compile = builtins.exec = lambda *rest: None\n"
        "builtins.AssertionError = type('Passed', (Warning,), {})\n"
        "builtins.__build_class__ = None"
    ),
    "modules": (
        "import json, sys\n"
        "json.dumps = lambda *rest: 'passed'\n"
        "json.loads = lambda *rest: {'name': 'twice', 'args': []}\n"
        "sys.modules['builtins'] = None"
    ),
    "trace": (
        "import sys\n"
        "def trace(frame, event, rest):\n"
        "    frame.f_locals.clear() if event == 'return' else None\n"
        "    return trace\n"
        "sys.settrace(trace); sys.setprofile(trace)"
    ),
    "the tests": "def check(candidate): pass\ndef function(name): return lambda x: 2 * x",
    "hooks": "import sys\nsys.excepthook = sys.unraisablehook = lambda *rest: None",
    "signals": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
    "warnings": "import warnings\nwarnings.simplefilter('ignore')\nassert True",
}
# Wrong functions whose values equal the right ones, or end the test.
LYING_FUNCTIONS = {
    "equal to all": (
        "    class Equal(int):\n"
        "        def __eq__(self, other): return True\n"
        "        def __ne__(self, other): return False\n"
        "        __hash__ = None\n"
        "    return Equal(x)\n"
    ),
    "equal without a type": (
        "    return type('Equal', (), {'__eq__': lambda self, other: True})()\n"
    ),
    "a mock": "    from unittest import mock\n    return mock.ANY\n",
    "no number": "    return float('nan')\n",
    "exit": "    raise SystemExit(0)\n",
    "exit at once": "    import os\n    os._exit(0)\n",
    "error": "    raise AssertionError\n",
    "end of iteration": "    raise StopIteration\n",
    "generator": "    yield 2 * x\n",
    "too large": "    return 'x' * 2**25\n",
    "deep": "    value = []\n    for _ in range(10**5): value = [value]\n    return value\n",
    "no value": "    import os\n    os.write(4, b'{}\\n'); os.write(5, b'[]\\n')\n",
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_program_cannot_claim_that_its_tests_passed(kind):
    problem = {**PROBLEM, "prompt": FORGERIES[kind] + "\n" + PROBLEM["prompt"]}
    program = problem["prompt"] + "    return x + 1\n"
    tests = "twice = function('twice')\n" + PROBLEM["test"] + "check(twice)"
    passed, _ = sandbox.run_program(program, tests, seconds=2)
    assert not passed
    honest = "def twice(x): return 2 * x"
    assert sandbox.run_program(honest, tests) == (True, "passed")


@pytest.mark.parametrize("kind", LYING_FUNCTIONS)
def test_function_with_wrong_values_does_not_pass(kind):
    assert not code_evaluation.solved(PROBLEM, LYING_FUNCTIONS[kind], seconds=2)


def test_values_are_copied_with_their_types():
    values = [
        None, True, 0, -1, 1.5, float("inf"), 1 + 2j, "\ud800é\n", b"\x00\xff", [], (),
        [1, (2, [3.0])], {}, {(1, "a"): [{2}], None: b""}, set(), {1, (2,)}, frozenset({"a"}),
    ]  # fmt: skip
    tests = (
        "same = function('same')\n"
        "def kinds(value):\n"
        "    parts = [*value.items()] if isinstance(value, dict) else value\n"
        "    inside = isinstance(value, (list, tuple, dict, set, frozenset))\n"
        "    return type(value), sorted(map(repr, map(kinds, parts))) if inside else hash(value)\n"
        "inf = float('inf')\n"
        f"for value in [*{values}, -(10**5000)]:\n"
        "    assert same(value) == value and kinds(same(value)) == kinds(value), value\n"
        "counts = function('counts')('aab')\n"
        "assert counts == {'a': 2, 'b': 1} and type(counts) is dict\n"
        "try: function('fails')()\n"
        "except KeyError: pass\n"
        "else: raise ValueError\n"
    )
    program = (
        "import collections\n"
        "def same(value): return value\n"
        "def counts(text): return collections.Counter(text)\n"
        "def fails(): raise KeyError('x')\n"
    )
    assert sandbox.run_program(program, tests) == (True, "passed")


def test_tests_call_other_functions_of_the_prompt():
    problem = {
        "prompt": (
            "def half(x):\n    return x // 2\n\n\n"
            'def twice(x):\n    """Double it, so that half undoes it."""\n'
        ),
        "test": "def check(candidate):\n    assert half(candidate(3)) == 3\n",
        "entry_point": "twice",
    }
    assert code_evaluation.solved(problem, "    return 2 * x\n")
    assert not code_evaluation.solved(problem, "    return x\n\ndef half(x):\n    return 3\n")
