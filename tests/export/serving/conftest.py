"""Fixtures that run the local server in a process and put it under load: `make test-serving`."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

# Results of the tests, for the page.
FOUND = []


def pytest_addoption(parser):
    parser.addoption("--seconds", type=float, default=60.0, help="duration of each load")
    parser.addoption("--page", help="write the results as Markdown to this file")
    parser.addoption("--screenshots", help="folder for screenshots of the page")


@pytest.fixture(scope="session")
def seconds(request):
    return request.config.getoption("--seconds")


@pytest.fixture(scope="session")
def record():
    """Function that records a line for the page: `record(what, found)`."""

    def noting(what, found):
        print(f"{what}: {found}")
        FOUND.append((what, found))

    return noting


def pytest_sessionfinish(session, exitstatus):
    path = session.config.getoption("--page")
    if not path or exitstatus or not FOUND:
        return
    lines = ["| test | found |", "|---|---|", *(f"| {what} | {found} |" for what, found in FOUND)]
    text = pathlib.Path(path).read_text("utf-8")
    begin, end = "<!-- found by make test-serving -->", "<!-- end -->"
    head, rest = text.split(begin)
    tail = rest.split(end, 1)[1]
    table = "\n".join(lines)
    pathlib.Path(path).write_text(f"{head}{begin}\n{table}\n{end}{tail}", "utf-8")


class Process:
    """`keras-llm serve` in a separate process, which keeps its ports when it is started again."""

    def __init__(self, base_path, log, *options):
        self.port, self.rest_api_port = _free_port(), _free_port()
        self._log = log
        self._command = [sys.executable, "-m", "keras_llm", "serve", str(base_path)]
        self._command += ["--port", str(self.port), "--rest_api_port", str(self.rest_api_port)]
        self._command += options
        self.start()

    def start(self):
        """Start the process without waiting until it is ready."""
        with open(self._log, "a") as log:
            self.process = subprocess.Popen(
                self._command, stderr=log, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            )

    def client(self, protocol, **options):
        """Return a client of its model "stories"."""
        from keras_llm import export

        rest = f"http://localhost:{self.rest_api_port}"
        target = rest if protocol == "REST" else f"localhost:{self.port}"
        return export.Client(target, "stories", **{"timeout": 120, "retries": 120, **options})

    def memory(self):
        """Return the resident bytes."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


@pytest.fixture
def process(text_base, tmp_path):
    """Function that starts `keras-llm serve` on the reference model, until the test ends."""
    started = []

    def start(*options, base_path=text_base):
        started.append(Process(base_path, tmp_path / "serve.log", *options))
        with started[-1].client("gRPC") as client:
            client.status()
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


class Load:
    """Clients that send requests without a pause and compare each text with the model's.

    Args:
        clients: list of `Client`, one for each thread.
        prompts: list of str.
        expected: list of str, the greedy texts of `tokens` tokens.
        tokens: int.
    """

    def __init__(self, clients, prompts, expected, tokens):
        self._clients = clients
        self._pairs = list(zip(prompts, expected, strict=True))
        self._tokens = tokens
        self._stop = threading.Event()
        self.latencies, self.wrong, self.failed = [], [], []
        self._threads = [
            threading.Thread(target=self._ask, args=(client, i)) for i, client in enumerate(clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client, index):
        while not self._stop.is_set():
            prompt, expected = self._pairs[index % len(self._pairs)]
            index += 1
            begin = time.monotonic()
            try:
                found = client.generate(prompt, self._tokens, temperature=0.0)
            except Exception as error:
                self.failed.append(error)
                continue
            self.latencies.append(time.monotonic() - begin)
            if found != expected:
                self.wrong.append((prompt, found))


@pytest.fixture(scope="session")
def load(task, held_out_prompts):
    """Function that creates a `Load` from clients."""
    tokens = 12
    expected = task(held_out_prompts, tokens, temperature=0.0)

    def make(clients):
        return Load(clients, held_out_prompts, expected, tokens)

    return make


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
