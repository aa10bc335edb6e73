"""Whole or not at all: writes that fail, are killed or run out of space leave the old artifact."""

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


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"] and names(target.parent) == ["model"]


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("1")
    with pytest.raises(InputError, match="exists"), atomic_folder(target):
        pytest.fail("the body must not run")
    with atomic_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("2")
        assert names(target) == ["old"]
    assert names(target) == ["new"] and names(tmp_path) == ["model"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as partial:
        (partial / "old").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("2")
        raise RuntimeError
    assert names(target) == ["old"] and names(tmp_path) == ["model"]


def test_an_unfinished_run_is_kept_if_it_is_worth_it(tmp_path):
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


def test_two_writers_do_not_mix(tmp_path):
    target = tmp_path / "model"
    with (
        atomic_folder(target),
        pytest.raises(InputError, match="another process"),
        atomic_folder(target),
    ):
        pytest.fail("the body must not run")


def test_a_file_appears_whole(tmp_path):
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


# A process that saves twice: with too small a disk, and so slowly that it can be killed meanwhile.
SAVE = """
    import resource, sys, time, keras_llm
    task = keras_llm.load(sys.argv[1])
    task.model.set_weights([w * 0 for w in task.model.get_weights()])

    # Writing past this size fails as a full disk does, with an OSError.
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


def is_task(folder, task):
    """Whether a folder holds a task: all that its texts come from, down to the last bit."""
    import keras_llm
    from keras_llm import models

    found = keras_llm.load(folder)
    text = "The value of 中文 is\n12."
    return (
        type(found) is type(task)
        and models.describe(found.model) == models.describe(task.model)
        and [v.path for v in found.model.variables] == [v.path for v in task.model.variables]
        and all(map(np.array_equal, found.model.get_weights(), task.model.get_weights()))
        and found.tokenizer.encode_prompt(text) == task.tokenizer.encode_prompt(text)
        and found.end_token_ids == task.end_token_ids
        and found.metadata == task.metadata
    )


def test_a_full_disk_and_a_kill_in_the_middle_of_saving_leave_the_old_model(task, tmp_path):
    folder = tmp_path / "model"
    task.save(folder)
    command = [sys.executable, "-c", textwrap.dedent(SAVE), str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "full disk\n"
        assert names(tmp_path) == ["model"]
        assert is_task(folder, task)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == [".model.partial.lock", "model", "model.partial"]
    assert is_task(folder, task)
    task.save(folder, overwrite=True)  # what the killed process left is no obstacle
    assert names(tmp_path) == ["model"]
    assert is_task(folder, task)


def test_without_an_atomic_exchange_the_old_folder_is_set_aside(tmp_path, monkeypatch):
    import keras_llm.files

    monkeypatch.setattr(keras_llm.files, "_exchange", lambda first, second: False)
    test_an_existing_folder_is_refused_or_replaced(tmp_path)
    assert os.listdir(tmp_path) == ["model"]
