"""Test that failing child processes of an export leave no files and raise a one-line error."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from keras_llm import export
from keras_llm.errors import ExportError
from keras_llm.export import children, report


def kill_on_request(monkeypatch, module, number):
    """Kill each child process that runs a module when it gets a request."""
    # Kill a new process; a kept one stays warm for later tests.
    monkeypatch.delitem(children._kept, module, raising=False)
    send = children.Child.send

    def send_and_kill(child, request):
        if child.process.args[2] == module:
            os.kill(child.process.pid, number)
        send(child, request)

    monkeypatch.setattr(children.Child, "send", send_and_kill)


@pytest.mark.parametrize(
    "module, what",
    [
        ("litert.lowering.worker", "that lowers the graph"),
        ("litert.worker", "that runs the file"),
    ],
)
def test_killed_child_of_litert_export(embedder, tmp_path, monkeypatch, module, what):
    kill_on_request(monkeypatch, f"keras_llm.export.{module}", signal.SIGKILL)
    message = f"^the process {what} was killed by SIGKILL, most likely because memory ran out"
    with pytest.raises(ExportError, match=message) as raised:
        export.litert(embedder, tmp_path / "x.tflite")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_killed_child_of_litert_lm_export(task, tmp_path, monkeypatch):
    kill_on_request(monkeypatch, "keras_llm.export.litert.litert_lm_worker", signal.SIGSEGV)
    with pytest.raises(
        ExportError, match="that runs the bundle in LiteRT-LM was killed by SIGSEGV"
    ):
        export.litert_lm(task, tmp_path / "x.litertlm", prefill_lengths=[16])
    assert list(tmp_path.iterdir()) == []


def test_killed_child_of_saved_model_export(embedder, tmp_path, monkeypatch):
    kill_on_request(monkeypatch, "keras_llm.export.saved_model.worker", signal.SIGKILL)
    with pytest.raises(ExportError, match="that runs the SavedModel was killed by SIGKILL"):
        export.saved_model(embedder, tmp_path / "served")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["x.tflite", "x.litertlm"])
def test_full_disk(task, embedder, tmp_path, name):
    """Limit the file size of this process to less than the weights."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 100_000 if name == "x.tflite" else 300_000
    assert limit < 4 * (embedder if name == "x.tflite" else task).model.count_params()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ExportError, match=rf"{name} cannot be written: .*left behind"):
            if name == "x.tflite":
                export.litert(embedder, tmp_path / name)
            else:
                export.litert_lm(task, tmp_path / name, prefill_lengths=[16])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_when_the_report_is_written(embedder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "atomic_file", full)
    with pytest.raises(ExportError, match=r"x\.tflite cannot be written: No space left on device"):
        export.litert(embedder, tmp_path / "x.tflite")
    assert list(tmp_path.iterdir()) == []


def test_error_message_of_failing_child():
    with children.Child("keras_llm.export.litert.worker", "that runs the file") as child:
        with pytest.raises(ExportError) as raised:
            child.ask({"path": "x.tflite"})
        assert str(raised.value) == (
            "the process that runs the file failed: KeyError: 'what'; nothing was written."
        )
        assert "litert/worker.py" in raised.value.__notes__[0]
    assert not child.folder.exists()


def test_child_timeout():
    child = children.Child("keras_llm.export.litert.lowering.worker", "that lowers", timeout=0.2)
    with child, pytest.raises(ExportError, match=r"gave no answer within 0\.2 s"):
        child.result()
    assert child.process.poll() is not None


def test_child_exits_with_parent():
    child = children.Child("keras_llm.export.litert.worker", "that runs the file")
    child.process.stdin.close()  # as when the parent exits
    waiting = threading.Thread(target=child.process.wait)
    waiting.start()
    waiting.join(60)
    assert child.process.returncode == 0
    child.close()


def test_killed_fork_kills_its_process():
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        children.in_fork(kill)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_fork_does_not_change_parent(tmp_path):
    state = {}

    def fill():
        state["loaded"] = True
        return {"pid": os.getpid(), "time": time.time()}, {}

    values, arrays = children.in_fork(fill)
    assert values["pid"] != os.getpid() and not state and not arrays


def test_kept_child_is_reused(tmp_path):
    module = "keras_llm.export.litert.worker"
    with children.keep(module):
        with children.child(module, "that runs the file") as first:
            process = first.process
        with children.child(module, "that runs another file") as second:
            assert second.process is process
            with pytest.raises(ExportError, match=r"that runs another file failed: .*KeyError"):
                second.ask({})
        with children.child(module, "that runs the file") as third:  # the second one failed
            assert third.process is not process
        assert process.poll() is not None and third.process.poll() is None
    assert third.process.poll() is not None and not third.folder.exists()


def test_child_cannot_import_keras(tmp_path):
    program = """
import sys
from keras_llm.export import children

def run(folder, request):
    try:
        import keras
    except ImportError:
        return {"keras": False}, {}
    return {"keras": True}, {}

children.serve(sys.argv[1], run)
"""
    (tmp_path / "request.json").write_text("{}")
    subprocess.run([sys.executable, "-c", program, tmp_path], input=b"\n", check=True)
    assert json.loads((tmp_path / "answer.json").read_text()) == {"keras": False}
