"""Atomic writes: a failed, killed or out-of-space write leaves the old artifact in place."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from keras_llm.errors import InputError
from keras_llm.files import atomic_file, atomic_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_folder_appears_complete(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"] and names(target.parent) == ["model"]


def test_existing_folder_raises_or_is_overwritten(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("1")
    with pytest.raises(InputError, match="exists"), atomic_folder(target):
        pytest.fail("the body must not run")
    with atomic_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("2")
        assert names(target) == ["old"]
    assert names(target) == ["new"] and names(tmp_path) == ["model"]


def test_error_keeps_only_old_folder(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("2")
        raise RuntimeError
    assert names(target) == ["old"] and names(tmp_path) == ["model"]


def test_keep_if_keeps_partial_folder(tmp_path):
    target = tmp_path / "run"
    for name in ("log", "best"):
        with pytest.raises(RuntimeError), atomic_folder(target, keep_if=["best"]) as partial:
            (partial / name).write_text("1")
            raise RuntimeError
        assert (tmp_path / "run.partial").exists() == (name == "best")
    with pytest.raises(InputError, match="unfinished"), atomic_folder(target, keep_if=["best"]):
        pytest.fail("the body must not run")
    with pytest.raises(RuntimeError), atomic_folder(target, keep_if=["b*"], resume=True) as partial:
        assert names(partial) == ["best"]
        raise RuntimeError
    with atomic_folder(target, overwrite=True, keep_if=["best"]) as partial:
        assert names(partial) == []


def test_concurrent_writer_raises(tmp_path):
    target = tmp_path / "model"
    with (
        atomic_folder(target),
        pytest.raises(InputError, match="another process"),
        atomic_folder(target),
    ):
        pytest.fail("the body must not run")


def test_atomic_file_appears_complete(tmp_path):
    target = tmp_path / "model.tflite"
    with atomic_file(target) as partial:
        assert partial.suffix == ".tflite"
        partial.write_text("1")
    with pytest.raises(InputError, match="exists"), atomic_file(target):
        pytest.fail("the body must not run")
    with pytest.raises(RuntimeError), atomic_file(target, overwrite=True) as partial:
        partial.write_text("2")
        raise RuntimeError
    assert target.read_text() == "1" and names(tmp_path) == ["model.tflite"]


def test_file_does_not_replace_a_folder(tmp_path):
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a folder"), atomic_file(tmp_path, overwrite):
            pytest.fail("the body must not run")


# Saves twice: first with too small a disk, then so slowly that the process can be killed meanwhile.
SAVE_SCRIPT = """
    import resource, sys, time, keras_llm
    task = keras_llm.load(sys.argv[1])
    task.model.set_weights([w * 0 for w in task.model.get_weights()])

    # Writing past this size fails with an OSError, as on a full disk.
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        task.save(sys.argv[1], overwrite=True)
    except OSError:
        print("full disk", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.stdin.readline()

    def slow(folder):
        print("in the middle", flush=True)
        time.sleep(60)
    task.tokenizer.save = slow
    task.save(sys.argv[1], overwrite=True)
"""


def holds_task(folder, task):
    """Check that a folder holds `task`: weights, tokenizer and metadata are bit-exact."""
    import keras_llm
    from keras_llm import models

    loaded = keras_llm.load(folder)
    text = "The value of 中文 is\n12."
    return (
        type(loaded) is type(task)
        and models.describe(loaded.model) == models.describe(task.model)
        and [v.path for v in loaded.model.variables] == [v.path for v in task.model.variables]
        and all(map(np.array_equal, loaded.model.get_weights(), task.model.get_weights()))
        and loaded.tokenizer.encode_prompt(text) == task.tokenizer.encode_prompt(text)
        and loaded.end_token_ids == task.end_token_ids
        and loaded.metadata == task.metadata
    )


def test_full_disk_and_kill_during_save_keep_old_model(task, tmp_path):
    folder = tmp_path / "model"
    task.save(folder)
    command = [sys.executable, "-c", textwrap.dedent(SAVE_SCRIPT), str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "full disk\n"
        assert names(tmp_path) == ["model"]
        assert holds_task(folder, task)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == [".model.partial.lock", "model", "model.partial"]
    assert holds_task(folder, task)
    task.save(folder, overwrite=True)  # files left by the killed process do not block saving
    assert names(tmp_path) == ["model"]
    assert holds_task(folder, task)


def test_overwrite_without_atomic_exchange(tmp_path, monkeypatch):
    import keras_llm.files

    monkeypatch.setattr(keras_llm.files, "_exchange", lambda first, second: False)
    test_existing_folder_raises_or_is_overwritten(tmp_path)
    assert os.listdir(tmp_path) == ["model"]
