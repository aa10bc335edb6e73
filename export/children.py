"""Run the worker processes of an export: one lowers graphs, others load the exported files.

A child process starts before it is needed, so that its imports overlap with the work of its
parent. It handles one request at a time, exchanged through a folder:

    with Child("keras_llm.export.litert.worker", "that runs the file") as child:
        child.send({"path": ...})
        ...
        answer = child.result()

A child cannot import Keras, which TensorFlow otherwise imports: exported files do not need it, and
it takes as long to import as TensorFlow itself.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from keras_llm.errors import ExportError
from keras_llm.types import JSON, PathLike

_REQUEST, _ANSWER, _ARRAYS, _STDERR = "request.json", "answer.json", "arrays.npz", "stderr"
_LINES = 8  # of a failed child's stderr that are kept
_NO_MEMORY = (
    "MemoryError",
    "bad_alloc",
    "ResourceExhausted",
    "alloc failed",
    "mmap error: 12",  # ENOMEM
    "Cannot allocate memory",
)
_kept: dict[str, "Child"] = {}  # module -> idle `Child` that the next export reuses; see `keep`
_to_keep: set[str] = set()  # modules


class Child:
    """A Python module that runs in a separate process and calls `serve`.

    Args:
        module: str. Module name.
        what: str. Description for error messages, as a relative clause: "that lowers the graph".
        timeout: float. Seconds to wait for an answer.

    Attributes:
        folder: path of the folder shared by both processes. `close` removes it.
        process: the `subprocess.Popen`.
    """

    def __init__(self, module: str, what: str, timeout: float = 3600) -> None:
        self.module, self._what, self._timeout = module, what, timeout
        self._environment, self._is_idle = dict(os.environ), True
        self._temporary = tempfile.TemporaryDirectory(prefix="keras_llm_export_")
        self.folder = pathlib.Path(self._temporary.name)
        self._stderr = open(self.folder / _STDERR, "w+b")  # noqa: SIM115, closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**self._environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, request: JSON) -> None:
        """Send a request, a dict of JSON values, without waiting for the answer."""
        self._is_idle, self._has_limit = False, "memory" in request
        (self.folder / _REQUEST).write_text(json.dumps(request), "utf-8")
        with contextlib.suppress(BrokenPipeError):  # the child has died; `result` reports why
            assert self.process.stdin is not None  # it is a pipe
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the answer and return it, a dict of JSON values and arrays.

        Raises:
            ExportError: if the process fails, is killed or times out. A note on the error has
                the last lines of its stderr.
        """
        assert self.process.stdout is not None  # it is a pipe
        ready, _, _ = select.select([self.process.stdout], [], [], self._timeout)
        if not ready:
            self.process.kill()
            raise ExportError(
                f"the process {self._what} gave no answer within {self._timeout} s; nothing was "
                "written."
            )
        if not self.process.stdout.readline():
            raise self._error(self.process.wait())
        answer = json.loads((self.folder / _ANSWER).read_text("utf-8"))
        arrays = self.folder / _ARRAYS
        if arrays.is_file():
            with np.load(arrays) as loaded:
                answer |= {name: loaded[name] for name in loaded.files}
            arrays.unlink()
        self._is_idle = True
        return answer

    def ask(self, request: JSON) -> dict[str, Any]:
        """Send a request and return its answer."""
        self.send(request)
        return self.result()

    def close(self) -> None:
        """Kill the process and remove its folder, or keep both for reuse (see `keep`)."""
        if self.module in _to_keep and self._is_idle and self.process.poll() is None:
            _kept.setdefault(self.module, self)
        if _kept.get(self.module) is not self:
            self._end()

    def _end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self._stderr.close()
        self._temporary.cleanup()

    def _error(self, code):
        """Return an error of one line that says how the process ended, with stderr as a note."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()][-_LINES:]
        output = "\n".join(lines)
        if any(name in output for name in _NO_MEMORY):
            how = "ran out of memory"
        elif code < 0:
            name = signal.Signals(-code).name
            # C++ code that does not check what malloc returns dies of SIGSEGV.
            by_memory = name == "SIGKILL" or (self._has_limit and name in ("SIGSEGV", "SIGABRT"))
            likely = ", most likely because memory ran out" if by_memory else ""
            how = f"was killed by {name}{likely}"
        else:
            how = f"failed: {lines[-1].rstrip('.')}" if lines else f"exited with code {code}"
        error = ExportError(f"the process {self._what} {how}; nothing was written.")
        error.add_note(output)
        return error


def child(module: str, what: str, timeout: float = 3600) -> Child:
    """Return a `Child` for these arguments: the one that was kept, or else a new one."""
    idle = _kept.pop(module, None)
    if idle is not None:
        if idle.process.poll() is None and idle._environment == dict(os.environ):
            idle._what, idle._timeout = what, timeout
            return idle
        idle._end()
    return Child(module, what, timeout)


@contextlib.contextmanager
def keep(*modules: str) -> Iterator[None]:
    """Keep idle children of the given modules when an export ends, for reuse by the next one.

    This saves the import time of the children in a process that writes many exports. An idle
    child takes about 300 MB.
    """
    _to_keep.update(modules)
    try:
        yield
    finally:
        _to_keep.difference_update(modules)
        for module in modules:
            if module in _kept:
                _kept.pop(module)._end()


def serve(
    folder: PathLike,
    run: Callable[[pathlib.Path, JSON], tuple[JSON, dict[str, Any]]],
    warm_up: Callable[[], object] | None = None,
) -> None:
    """Answer requests in the child process until the parent closes its end.

    Args:
        folder: path of the shared folder.
        run: function that takes the folder and the request and returns a dict of JSON values and
            a dict of arrays.
        warm_up: function without arguments that imports what `run` needs.
    """
    folder = pathlib.Path(folder)
    if "keras" in sys.modules:
        raise ExportError("a worker process of an export must not import Keras.")
    modules: dict[str, Any] = sys.modules
    modules["keras"] = None  # importing it fails
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep what libraries print out of the answers
    if warm_up is not None:
        warm_up()
    while sys.stdin.buffer.readline():
        values, arrays = run(folder, json.loads((folder / _REQUEST).read_text("utf-8")))
        if arrays:
            np.savez(folder / _ARRAYS, **arrays)
        (folder / _ANSWER).write_text(json.dumps(values), "utf-8")
        answers.write(b"\n")
        answers.flush()


def in_fork(
    function: Callable[..., tuple[JSON, dict[str, Any]]], *arguments: Any
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Call a function in a fork of this process and return its result.

    The memory that the function uses is freed when the fork ends.

    Args:
        function: function that returns a dict of JSON values and a dict of arrays.
        *arguments: its arguments.

    Raises:
        SystemExit: if the fork fails, which has printed its error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        child = os.fork()
        if not child:
            status = 1
            try:
                values, arrays = function(*arguments)
                np.savez(folder / _ARRAYS, **arrays)
                (folder / _ANSWER).write_text(json.dumps(values), "utf-8")
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))  # end with the same signal
        if status:
            sys.exit(1)  # the last line of stderr is the error of the fork
        with np.load(folder / _ARRAYS) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        return json.loads((folder / _ANSWER).read_text("utf-8")), arrays


def limit_memory(number_of_bytes: int) -> None:
    """Make allocations above a limit fail, in this process and its children."""
    import resource

    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (number_of_bytes, hard_limit))
