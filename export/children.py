"""Processes of an export: one lowers graphs, others load what was written as a user would.

A child is started before it is needed, so that it imports while its parent works. It takes one
request after the other, through a folder:

    with Child("keras_llm.export.litert.worker", "that runs the file") as child:
        child.send({"path": ...})
        ...
        answer = child.result()

No child can import Keras, which it would otherwise through TensorFlow: what was exported does not
need it, and it takes as long to import as TensorFlow itself.
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

import numpy as np

from keras_llm.errors import ExportError

_REQUEST, _ANSWER, _ARRAYS, _STDERR = "request.json", "answer.json", "arrays.npz", "stderr"
_LINES = 8  # of what a child said last
_NO_MEMORY = (
    "MemoryError",
    "bad_alloc",
    "ResourceExhausted",
    "alloc failed",
    "mmap error: 12",  # ENOMEM
    "Cannot allocate memory",
)
_kept = {}  # module -> an idle `Child` that the next export takes; see `keep`
_to_keep = set()  # modules


class Child:
    """A Python module that runs as a process of its own and calls `serve`.

    Args:
        module: str, its name.
        what: str, what it does, as a relative clause: "that lowers the graph".
        timeout: seconds that an answer may take.

    Attributes:
        folder: path of a folder that both see and that is removed at the end.
        process: the `subprocess.Popen`.
    """

    def __init__(self, module, what, timeout=3600):
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, request):
        """Hand over a request, a dict of JSON values, and do not wait."""
        self._is_idle = False
        (self.folder / _REQUEST).write_text(json.dumps(request), "utf-8")
        with contextlib.suppress(BrokenPipeError):  # it has died, and `result` tells why
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def result(self):
        """The answer, a dict of JSON values and arrays.

        Raises:
            ExportError: if the process fails, is killed or takes too long, with its last words.
        """
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

    def ask(self, request):
        """`send` and `result`."""
        self.send(request)
        return self.result()

    def close(self):
        """End the process if it still runs, and remove its folder; or keep both (see `keep`)."""
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
        """One line that says how the process ended; what it said last is a note."""
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").splitlines()
        said = [line.strip() for line in said if line.strip()][-_LINES:]
        words = "\n".join(said)
        if any(name in words for name in _NO_MEMORY):
            how = "ran out of memory"
        elif code < 0:
            name = signal.Signals(-code).name
            likely = ", most likely because memory ran out" if name == "SIGKILL" else ""
            how = f"was killed by {name}{likely}"
        else:
            how = f"failed: {said[-1].rstrip('.')}" if said else f"ended with {code}"
        error = ExportError(f"the process {self._what} {how}; nothing was written.")
        error.add_note(words)
        return error


def child(module, what, timeout=3600):
    """A `Child` of these arguments: the one that was kept, if there is one, or a new one."""
    found = _kept.pop(module, None)
    if found is not None:
        if found.process.poll() is None and found._environment == dict(os.environ):
            found._what, found._timeout = what, timeout
            return found
        found._end()
    return Child(module, what, timeout)


@contextlib.contextmanager
def keep(*modules):
    """Keep the idle children of some modules when an export ends, for the next one.

    A process that writes many exports spares the seconds that children import for. An idle child
    takes some 300 MB.
    """
    _to_keep.update(modules)
    try:
        yield
    finally:
        _to_keep.difference_update(modules)
        for module in modules:
            if module in _kept:
                _kept.pop(module)._end()


def serve(folder, run, warm_up=None):
    """The child's side: answer requests until the parent has no more.

    Args:
        folder: path of the folder.
        run: function of the folder and the request that returns a dict of JSON values and a dict
            of arrays.
        warm_up: function of nothing that imports what answers will need.
    """
    folder = pathlib.Path(folder)
    if "keras" in sys.modules:
        raise ExportError("a process of an export has imported Keras.")
    sys.modules["keras"] = None  # importing it fails
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    if warm_up is not None:
        warm_up()
    while sys.stdin.buffer.readline():
        values, arrays = run(folder, json.loads((folder / _REQUEST).read_text("utf-8")))
        if arrays:
            np.savez(folder / _ARRAYS, **arrays)
        (folder / _ANSWER).write_text(json.dumps(values), "utf-8")
        answers.write(b"\n")
        answers.flush()


def in_fork(function, *arguments):
    """What a function returns in a fork of this process, which must be JSON and arrays as of
    `serve`; what it loads is gone afterwards.

    Raises:
        RuntimeError: if the fork fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
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
            os.kill(os.getpid(), os.WTERMSIG(status))  # end as it did
        if status:
            raise RuntimeError(f"{function.__name__} failed")
        with np.load(folder / _ARRAYS) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        return json.loads((folder / _ANSWER).read_text("utf-8")), arrays


def limit_memory(number_of_bytes):
    """Let allocations beyond a bound fail, in this process and what it starts."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (number_of_bytes, most))
