"""Count how many seeded faults the tests catch.

Run it with a Python that has the library's test dependencies, from anywhere:

    python tests/tools/seeded_faults.py                    # all faults, one after the other
    python tests/tools/seeded_faults.py --jobs 4           # four at a time
    python tests/tools/seeded_faults.py --only 'layers-*'  # those whose names match
    python tests/tools/seeded_faults.py --list             # say what the faults are; runs no tests
    python tests/tools/seeded_faults.py --check            # say which do not fit; runs no tests
    python tests/tools/seeded_faults.py --source CHECKOUT  # the code and tests of another checkout

The faults are in faults.py beside this file. Each is one changed line. For each job the files that
git tracks in the checkout, as they are in its working tree (`git add` new ones first), are copied
into a temporary folder. A fault is put into the copy, the tests that should notice it run there,
and it is taken out again; the checkout itself is never changed. The tests and the processes they
start import `keras_llm` from the copy: PYTHONPATH names a folder whose sitecustomize.py puts a
finder for it first, before that of an editable install.

A fault is caught if a test fails, or if pytest crashes (as by a segmentation fault) or takes
longer than --timeout. It is missed if all tests pass. Any other end of pytest is an error, e.g.
that a file of tests cannot be imported. A fault whose text is not in the checkout exactly once is
not applicable and does not count; --check says why. The exit code is 1 if a fault is missed or in
error, else 0. Whether the tests pass without a fault is not looked at: run them first, for a test
that always fails catches everything.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from faults import FAULTS

CAUGHT, MISSED, ERROR, NOT_APPLICABLE = "caught", "missed", "error", "not applicable"

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}

# In a folder beside `checkout`. The modules of the three packages come from the copy or not at
# all: the editable install would find those that the copy lacks in its own checkout.
_SITECUSTOMIZE = """
import importlib.machinery
import importlib.util
import pathlib
import sys

_ROOT = pathlib.Path(__file__).parent.parent / "checkout"
_FOLDERS = {
    "keras_llm": _ROOT / "keras_llm",
    "keras_llm.export": _ROOT / "export",
    "keras_llm.recipes": _ROOT / "recipes",
}


class _Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        folder = _FOLDERS.get(name)
        if folder is not None:
            return importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
        folder = _FOLDERS.get(name.rpartition(".")[0])
        if folder is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


sys.meta_path.insert(0, _Finder)
"""


class Result(NamedTuple):
    """What became of a fault."""

    name: str
    what: str
    file: str
    outcome: str
    seconds: float
    first: str  # the first test that failed, or why none did
    lines: list[str]  # the last lines of the output, for an error


class Copy:
    """A copy of a checkout which takes one fault at a time.

    Args:
        source: path of a git checkout.
        folder: path of an empty folder.
        python: the Python that runs the tests.
        timeout: float, seconds that the tests of one fault may take.
    """

    def __init__(self, source, folder, python, timeout):
        self._python, self._timeout = python, timeout
        self._folder, self._root = folder, folder / "checkout"
        self._process = None
        for name in tracked(source):
            target = self._root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target, follow_symlinks=False)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(_SITECUSTOMIZE, "utf-8")

    def run(self, fault):
        """Put a fault in, run its tests and take it out; returns a `Result`."""
        place = place_of(fault, self._root)
        tests = [test for test in fault.tests if has_test(self._root, test)]
        if place is None:
            return Result(fault.name, fault.what, fault.place.file, NOT_APPLICABLE, 0.0, "", [])
        if not tests:
            first = "none of its tests is there"
            return Result(fault.name, fault.what, place.file, ERROR, 0.0, first, [])
        path = self._root / place.file
        content = path.read_bytes()
        begin = time.monotonic()
        try:
            path.write_bytes(content.replace(place.find.encode(), place.replace.encode()))
            code, output = self._pytest(tests)
        finally:
            path.write_bytes(content)
        outcome, first = verdict(code, output)
        seconds = round(time.monotonic() - begin, 1)
        lines = output.splitlines()[-15:] if outcome == ERROR else []
        return Result(fault.name, fault.what, place.file, outcome, seconds, first, lines)

    def stop(self):
        """Kill the tests that run."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _pytest(self, tests):
        """The exit code of pytest, None if it took too long, and what it wrote."""
        paths = [str(self._folder / "site"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # A compiled file counts as new if size and second of its source are the same.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [self._python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--basetemp", str(self._folder / "tests"), *tests]
        log = self._folder / "log"
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop()  # and what the tests started and left
                self._process.wait()
                self._process = None
        return code, log.read_text("utf-8", "replace")


def tracked(source):
    """The paths of the files that git tracks in a checkout, without those removed since."""
    listed = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z"], check=True, stdout=subprocess.PIPE
    )
    names = os.fsdecode(listed.stdout).split("\0")
    return [name for name in names if name and os.path.lexists(source / name)]


def verdict(code, output):
    """What an exit code of pytest says of a fault, and the first test that failed."""
    if code is None:
        return CAUGHT, "timed out"
    if -code in _CRASHES:
        return CAUGHT, f"killed by {signal.Signals(-code).name}"
    if code == 0:
        return MISSED, ""
    lines = output.rpartition("short test summary info")[2].splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    first = failed[0].split(" ", 1)[1].split(" - ")[0] if failed else ""
    if code == 1 and "::" in first:
        return CAUGHT, first
    # With -x, pytest ends with 1 also if it cannot import a file of tests, which it names alone.
    return ERROR, f"pytest ended with {code} {first}"


def place_of(fault, root):
    """The first place of a fault that fits a checkout, or None."""
    for place in (fault.place, *fault.older):
        path = root / place.file
        if path.is_file() and path.read_text("utf-8").count(place.find) == 1:
            return place
    return None


def has_test(root, test):
    """Whether a checkout has a test, named as pytest takes it."""
    file, _, name = test.partition("::")
    path = root / file
    if not name:
        return path.exists()
    function = name.split("::")[-1].partition("[")[0]
    return path.is_file() and f"def {function}(" in path.read_text("utf-8")


def complaints(fault, root):
    """What is wrong with a fault in a checkout, line by line."""
    place = place_of(fault, root)
    if place is None:
        for file, find, _ in (fault.place, *fault.older):
            if (root / file).is_file():
                count = (root / file).read_text("utf-8").count(find)
                yield f"the text is {count} times in {file}, not once"
        return
    if place.find == place.replace:
        yield "nothing changes"
    text = (root / place.file).read_text("utf-8").replace(place.find, place.replace)
    try:
        compile(text, place.file, "exec", dont_inherit=True)
    except SyntaxError as error:
        yield f"{place.file} does not compile: {error}"
    if not any(has_test(root, test) for test in fault.tests):
        yield "none of its tests is there"


def check(faults, root):
    """Print which faults do not fit a checkout; returns the exit code."""
    wrong = absent = 0
    for fault in faults:
        lines = list(complaints(fault, root))
        for line in lines:
            print(f"{fault.name}: {line}")
        wrong += bool(lines)
        if not lines and place_of(fault, root) is None:
            print(f"{fault.name}: {NOT_APPLICABLE}, there is no {fault.place.file}")
            absent += 1
    fit = len(faults) - wrong - absent
    print(f"{fit} of {len(faults)} faults fit {root}; {wrong} do not, {absent} {NOT_APPLICABLE}")
    return 1 if wrong else 0


def run(faults, source, python, timeout, jobs):
    """Run faults, several at a time, and print a line for each; returns a list of `Result`."""
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(jobs) as pool,
    ):
        copies, free, stopped = [], queue.SimpleQueue(), threading.Event()
        for i in range(jobs):
            place = pathlib.Path(folder).resolve() / str(i)
            place.mkdir()
            copies.append(Copy(source, place, python, timeout))
            free.put(copies[-1])

        def one(fault):
            copy = free.get()
            try:
                return None if stopped.is_set() else copy.run(fault)
            finally:
                free.put(copy)

        try:
            for future in as_completed([pool.submit(one, fault) for fault in faults]):
                results.append(future.result())
                report(results[-1])
        except BaseException:
            stopped.set()
            for copy in copies:
                copy.stop()
            raise
    order = [fault.name for fault in faults]
    return sorted(results, key=lambda result: order.index(result.name))


def report(result):
    """Print the line of a fault, and what pytest wrote last if it is in error."""
    line = f"{result.outcome:14} {result.seconds:7.1f} s  {result.name}  {result.first}"
    print("\n".join([line.rstrip(), *(f"    {line}" for line in result.lines)]), flush=True)


def summarize(results):
    """Print how many faults are caught and which are not; returns the exit code."""
    found = {
        outcome: [result for result in results if result.outcome == outcome]
        for outcome in (CAUGHT, MISSED, ERROR, NOT_APPLICABLE)
    }
    count = len(results) - len(found[NOT_APPLICABLE])
    print(f"{len(found[CAUGHT])} of {count} faults caught")
    for outcome in (MISSED, ERROR):
        for result in found[outcome]:
            print(f"{outcome}: {result.name} ({result.file}): {result.what}")
    if found[NOT_APPLICABLE]:
        names = ", ".join(result.name for result in found[NOT_APPLICABLE])
        print(f"{NOT_APPLICABLE}: {names}")
    return 1 if found[MISSED] or found[ERROR] else 0


def chosen(patterns):
    """The faults whose names match one of some patterns; all without patterns."""
    for pattern in patterns:
        if not fnmatch.filter([fault.name for fault in FAULTS], pattern):
            sys.exit(f"No fault is named {pattern}; --list shows their names.")
    return [
        fault
        for fault in FAULTS
        if not patterns or any(fnmatch.fnmatchcase(fault.name, p) for p in patterns)
    ]


def positive(text):
    """Read an int > 0 of the command line."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


def main():
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or patterns")
    parser.add_argument("--list", action="store_true", help="print the faults")
    parser.add_argument("--check", action="store_true", help="check the faults, without tests")
    parser.add_argument("--source", type=pathlib.Path, default=here, help="a git checkout")
    parser.add_argument("--python", default=sys.executable, help="what runs the tests")
    parser.add_argument("--jobs", type=positive, default=1, help="how many faults at a time")
    parser.add_argument("--timeout", type=positive, default=900, help="seconds for each fault")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results")
    options = parser.parse_args()
    faults, source = chosen(options.only), options.source.resolve()
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"there is no {options.python}")
    if options.list:
        for fault in faults:
            place = place_of(fault, source) or fault.place
            print(f"{fault.name}  {place.file}  {fault.what}")
        return 0
    if options.check:
        return check(faults, source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no tests are left running
    python = os.path.abspath(python)  # a link of a virtual environment stays one
    results = run(faults, source, python, options.timeout, options.jobs)
    if options.json is not None:
        rows = [result._asdict() for result in results]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return summarize(results)


if __name__ == "__main__":
    sys.exit(main())
