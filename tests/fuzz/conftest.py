"""Run loaders on mutated files: InputError in one line or a result, in bounded time and memory."""

import contextlib
import copy
import json
import os
import pathlib
import resource
import shutil
import signal

import hypothesis
import pytest
from hypothesis import strategies as st

from keras_llm.errors import InputError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
_SECONDS = 30
_BYTES = 4 << 30
_HEADER = 6000  # first bytes of a file, where half of the changes are

# Numbers that are written over numbers of a file: sizes, counts, offsets, types.
_NUMBERS = [0, 1, 2, 3, 7, 13, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
# Values that `json.dumps` cannot write are strings here and replaced in the text.
_DEEP, _DIGITS, _NUMBER = "@deep@", "@digits@", "@number@"
_ODD = [
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 10**12, 2**63, 10**39, 1e308, -1e308, [], {}, ""),
    *("a", "\0", "\ud800", "x" * 3000, [1], ["a", []], [[[]]], {"a": 1}, {"type": []}),
    *(float("nan"), float("inf"), _DEEP, _DIGITS, _NUMBER),
]


def pytest_configure():
    hypothesis.settings.register_profile(
        "fuzz",
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
        database=None,
    )


@pytest.fixture(scope="session")
def fuzz():
    """Return a decorator like `hypothesis.given` that runs a small number of examples.

    The environment variable FUZZ_EXAMPLES is another number, for all tests.
    """

    def decorate(count, *strategies):
        settings = hypothesis.settings(
            hypothesis.settings.get_profile("fuzz"), max_examples=EXAMPLES or count
        )
        return lambda function: settings(hypothesis.given(*strategies)(function))()

    return decorate


@pytest.fixture(scope="session")
def check():
    """Return a function that calls a loader and returns its result, or None after InputError."""

    def call(load, *arguments):
        try:
            with _limits():
                return load(*arguments)
        except InputError as error:
            assert str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 2100
            return None

    return call


@contextlib.contextmanager
def _limits():
    """Raise TimeoutError after some seconds, and MemoryError above some memory."""

    def stop(*_):
        raise TimeoutError(f"no answer after {_SECONDS} s")

    used = int(pathlib.Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    old_limits = resource.getrlimit(resource.RLIMIT_DATA)
    old_handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_DATA, (used + _BYTES, old_limits[1]))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old_handler)
        resource.setrlimit(resource.RLIMIT_DATA, old_limits)


@pytest.fixture(scope="session")
def mutated_bytes():
    """Return a strategy that changes 1 to 4 places in the first `limit` bytes of a content."""
    return _mutated_bytes


@pytest.fixture(scope="session")
def mutated_json():
    """Return a strategy that changes 1 to 3 values of a JSON value and returns bytes."""
    return _mutated_json


@pytest.fixture(scope="session")
def mutated_file():
    """Return a strategy of a folder, the name of a file in it, and its changed content.

    It takes the folders and the names of the files to change; None is all of them.
    """

    def strategy(folders, names=None):
        choices = []
        for folder in folders:
            for path in sorted(folder.iterdir()):
                if not path.is_file() or (names is not None and path.name not in names):
                    continue
                content = path.read_bytes()
                if path.suffix == ".json":
                    changed = _mutated_json(json.loads(content))
                else:
                    changed = st.one_of(_mutated_bytes(content, _HEADER), _mutated_bytes(content))
                choices.append(st.tuples(st.just(folder), st.just(path.name), changed))
        return st.one_of(choices)

    return strategy


@pytest.fixture(scope="session")
def with_file():
    """Return a function that copies a folder with another content of one file."""

    def copied(folder, name, content, target):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        (target / name).write_bytes(content)
        return target

    return copied


@st.composite
def _mutated_bytes(draw, content, limit=None):
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(min(len(content), limit or len(content)) - 1, 0)))
        kind = draw(st.sampled_from(["byte", "byte", "bit", "number", "number", "cut", "insert"]))
        if kind == "byte":
            content[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "bit":
            content[place : place + 1] = bytes([content[place] ^ 1 << draw(st.integers(0, 7))])
        elif kind == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(_NUMBERS)) % 256**size
            content[place : place + size] = number.to_bytes(size, "little")
        elif kind == "cut":
            end = draw(st.integers(place, min(place + 64, len(content))))
            del content[place : draw(st.sampled_from([end, len(content)]))]
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        if not content:
            break
    return bytes(content)


@st.composite
def _mutated_json(draw, value):
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["set", "set", "set", "remove", "add"]))
        if kind == "remove":
            del container[key]
        elif kind == "add" and isinstance(container, dict):
            container[draw(st.sampled_from(["x", "", "dtype", "type", "class", "1"]))] = None
        else:
            odd = draw(st.sampled_from(_ODD) | st.integers() | st.text(max_size=8))
            container[key] = copy.deepcopy(odd)  # it may be changed next
    content = json.dumps(value)
    for name, text in (
        (_DEEP, "[" * 100_000 + "]" * 100_000),
        (_DIGITS, "9" * 5000),
        (_NUMBER, "1" * 100),
    ):
        content = content.replace(f'"{name}"', text)
    content = content.encode()
    return draw(st.one_of(st.just(content), st.just(content), _mutated_bytes(content)))


def _places(value, depth=0):
    """Yield pairs of a container and a key or index; only the first ones of long containers."""
    keys = list(value)[:40] if isinstance(value, dict) else range(min(len(value), 6))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)) and depth < 6:
            yield from _places(value[key], depth + 1)
