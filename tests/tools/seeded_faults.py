"""Count how many seeded faults the tests catch.

Run it with a Python that has the library's test dependencies, from anywhere:

    python tests/tools/seeded_faults.py                    # all faults, one after the other
    python tests/tools/seeded_faults.py --jobs 4           # four at a time
    python tests/tools/seeded_faults.py --only 'layers-*'  # faults whose names match
    python tests/tools/seeded_faults.py --list             # list the faults; runs no tests
    python tests/tools/seeded_faults.py --check            # list misfits; runs no tests
    python tests/tools/seeded_faults.py --source CHECKOUT  # the code and tests of another checkout

The faults are in faults.py in the same folder. Each is one changed line. For each job, the files
that git tracks in the checkout, as they are in its working tree (`git add` new ones first), are
copied into a temporary folder. A fault is applied to the copy, the tests that should notice it run
there, and it is reverted; the checkout itself is never changed. The tests and the processes they
start import `keras_llm` from the copy: PYTHONPATH names a folder whose sitecustomize.py inserts a
finder for it before that of an editable install.

A fault is caught if a test fails, or if pytest crashes (for example with a segmentation fault) or
takes longer than --timeout. It is missed if all tests pass. Any other exit of pytest is an error,
for example if a test file cannot be imported. A fault whose text does not occur in the checkout
exactly once is not applicable and does not count; --check prints the reason. The exit code is 1 if
a fault is missed or in error, else 0. The tool does not check that the tests pass without a fault:
run them first, because a test that always fails catches everything.
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

# Written to a folder next to `checkout`. Modules of the three packages are imported only from the
# copy: otherwise, the editable install would find modules that the copy does not have.
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
    """The outcome of a fault."""

    name: str
    what: str
    file: str
    outcome: str
    seconds: float
    first: str  # the first test that failed, or the reason why none did
    lines: list[str]  # the last lines of the output, for an error


class Copy:
    """A copy of a checkout to which one fault at a time is applied.

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
        """Apply a fault, run its tests and revert it; return a `Result`."""
        place = find_place(fault, self._root)
        tests = [test for test in fault.tests if has_test(self._root, test)]
        if place is None:
            return Result(fault.name, fault.what, fault.place.file, NOT_APPLICABLE, 0.0, "", [])
        if not tests:
            first = "none of its tests exists"
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
        """Kill the running tests."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _pytest(self, tests):
        """Return pytest's exit code, None after a timeout, and its output."""
        paths = [str(self._folder / "site"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # Bytecode counts as current if size and mtime (in seconds) of the source are the same.
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
                self.stop()  # also kills processes that the tests left running
                self._process.wait()
                self._process = None
        return code, log.read_text("utf-8", "replace")


def tracked(source):
    """Return the paths of the files that git tracks in a checkout, without deleted ones."""
    listed = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z"], check=True, stdout=subprocess.PIPE
    )
    names = os.fsdecode(listed.stdout).split("\0")
    return [name for name in names if name and os.path.lexists(source / name)]


def verdict(code, output):
    """Return the outcome for an exit code of pytest, and the first test that failed."""
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
    # With -x, pytest also exits with 1 if it cannot import a test file, which it names alone.
    return ERROR, f"pytest ended with {code} {first}"


def find_place(fault, root):
    """Return the first place of a fault that fits a checkout, or None."""
    for place in (fault.place, *fault.older):
        path = root / place.file
        if path.is_file() and path.read_text("utf-8").count(place.find) == 1:
            return place
    return None


def has_test(root, test):
    """Check that a checkout has a test, named as for pytest."""
    file, _, name = test.partition("::")
    path = root / file
    if not name:
        return path.exists()
    function = name.split("::")[-1].partition("[")[0]
    return path.is_file() and f"def {function}(" in path.read_text("utf-8")


def find_problems(fault, root):
    """Yield what does not fit between a fault and a checkout, as lines of text."""
    place = find_place(fault, root)
    if place is None:
        for file, find, _ in (fault.place, *fault.older):
            if (root / file).is_file():
                count = (root / file).read_text("utf-8").count(find)
                yield f"the text occurs {count} times in {file}, not once"
        return
    if place.find == place.replace:
        yield "the replacement changes nothing"
    text = (root / place.file).read_text("utf-8").replace(place.find, place.replace)
    try:
        compile(text, place.file, "exec", dont_inherit=True)
    except SyntaxError as error:
        yield f"{place.file} does not compile: {error}"
    if not any(has_test(root, test) for test in fault.tests):
        yield "none of its tests exists"


def check(faults, root):
    """Print which faults do not fit a checkout; return the exit code."""
    misfits = absent = 0
    for fault in faults:
        lines = list(find_problems(fault, root))
        for line in lines:
            print(f"{fault.name}: {line}")
        misfits += bool(lines)
        if not lines and find_place(fault, root) is None:
            print(f"{fault.name}: {NOT_APPLICABLE}, {fault.place.file} does not exist")
            absent += 1
    fitting = len(faults) - misfits - absent
    print(
        f"{fitting} of {len(faults)} faults fit {root}; {misfits} do not, {absent} {NOT_APPLICABLE}"
    )
    return 1 if misfits else 0


def run(faults, source, python, timeout, jobs):
    """Run faults, several at a time, and print a line for each; return a list of `Result`."""
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

        def run_one(fault):
            copy = free.get()
            try:
                return None if stopped.is_set() else copy.run(fault)
            finally:
                free.put(copy)

        try:
            for future in as_completed([pool.submit(run_one, fault) for fault in faults]):
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
    """Print the line of a fault, and the end of pytest's output if it is in error."""
    line = f"{result.outcome:14} {result.seconds:7.1f} s  {result.name}  {result.first}"
    print("\n".join([line.rstrip(), *(f"    {line}" for line in result.lines)]), flush=True)


def summarize(results):
    """Print how many faults are caught and which are not; return the exit code."""
    by_outcome = {
        outcome: [result for result in results if result.outcome == outcome]
        for outcome in (CAUGHT, MISSED, ERROR, NOT_APPLICABLE)
    }
    count = len(results) - len(by_outcome[NOT_APPLICABLE])
    print(f"{len(by_outcome[CAUGHT])} of {count} faults caught")
    for outcome in (MISSED, ERROR):
        for result in by_outcome[outcome]:
            print(f"{outcome}: {result.name} ({result.file}): {result.what}")
    if by_outcome[NOT_APPLICABLE]:
        names = ", ".join(result.name for result in by_outcome[NOT_APPLICABLE])
        print(f"{NOT_APPLICABLE}: {names}")
    return 1 if by_outcome[MISSED] or by_outcome[ERROR] else 0


def select(patterns):
    """Return the faults whose names match one of the patterns; all faults without patterns."""
    for pattern in patterns:
        if not fnmatch.filter([fault.name for fault in FAULTS], pattern):
            sys.exit(f"No fault is named {pattern}; --list prints the names.")
    return [
        fault
        for fault in FAULTS
        if not patterns or any(fnmatch.fnmatchcase(fault.name, p) for p in patterns)
    ]


def positive_int(text):
    """Parse an int > 0 of the command line."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


def main():
    """Run what the command line requests; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names or patterns")
    parser.add_argument("--list", action="store_true", help="print the faults")
    parser.add_argument("--check", action="store_true", help="check the faults, without tests")
    parser.add_argument("--source", type=pathlib.Path, default=here, help="a git checkout")
    parser.add_argument("--python", default=sys.executable, help="Python that runs the tests")
    parser.add_argument("--jobs", type=positive_int, default=1, help="how many faults at a time")
    parser.add_argument("--timeout", type=positive_int, default=900, help="seconds for each fault")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results")
    options = parser.parse_args()
    faults, source = select(options.only), options.source.resolve()
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"{options.python} does not exist")
    if options.list:
        for fault in faults:
            place = find_place(fault, source) or fault.place
            print(f"{fault.name}  {place.file}  {fault.what}")
        return 0
    if options.check:
        return check(faults, source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no tests keep running
    python = os.path.abspath(python)  # keeps the symbolic link of a virtual environment
    results = run(faults, source, python, options.timeout, options.jobs)
    if options.json is not None:
        rows = [result._asdict() for result in results]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return summarize(results)


if __name__ == "__main__":
    sys.exit(main())
