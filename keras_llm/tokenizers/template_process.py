"""Run chat templates in a child process with limited time and memory."""

import atexit
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any

from keras_llm.errors import InputError

SECONDS = 2.0  # of processor time for one text
BYTES = 512 * 2**20  # of memory
_WORKER = pathlib.Path(__file__).with_name("template_worker.py")


class TemplateProcess:
    """A process that compiles and renders chat templates; see `template_worker.py`.

    It starts with the first request, answers one request at a time, and starts again if a template
    has exceeded a limit.

    Args:
        seconds: float, the limit of processor time for one text.
        size: int, the limit of memory in bytes.
    """

    def __init__(self, seconds: float = SECONDS, size: int = BYTES) -> None:
        self._limits = (seconds, size)
        self._process: Any = None  # a `Popen` with pipes
        self._lock = threading.Lock()

    def answer(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, see `template_worker.py`.

        Raises:
            InputError: if the request is not JSON.
        """
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"`messages` and variables must be JSON values: {error}.") from None
        with self._lock:
            process = self._running()
            try:
                return self._sent(process, line)
            except BaseException:  # e.g. Ctrl-C: the answer to this request must not be read later
                self.close()
                raise

    def _sent(self, process, line):
        with contextlib.suppress(BrokenPipeError):  # it may end while it reads the request
            process.stdin.write(line)
            process.stdin.flush()
        if line := process.stdout.readline():
            answer = json.loads(line)
            if answer.pop("ends", False):  # its memory may be full
                self.close()
            return answer
        code = process.wait()
        self.close()
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return {"error": f"it takes more than {self._limits[0]:g} s"}
        return {"error": f"it ended the process that renders it (exit code {code})"}

    def _running(self):
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._started()
        return self._process

    def _started(self):
        places = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
        folders = {str(pathlib.Path(spec.origin).parents[1]) for spec in places}
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", str(_WORKER), *map(str, self._limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**variables, "PYTHONPATH": os.pathsep.join(sorted(folders))},
            start_new_session=True,  # without the terminal's Ctrl-C
        )

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def forget(self) -> None:
        """Leave the process to the parent, after a fork."""
        self._process, self._lock = None, threading.Lock()


shared = TemplateProcess()
atexit.register(shared.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.forget)
