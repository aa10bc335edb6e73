"""Whole or not at all: writes that fail, are killed or run out of space leave the old artefact."""

import os
import resource
import signal
import subprocess
import sys
import textwrap

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


SAVE = """
    import sys, time, keras_llm
    task = keras_llm.load(sys.argv[1])
    task.model.set_weights([w * 0 for w in task.model.get_weights()])
    save_files = task.tokenizer.save
    def slow(folder):
        print("in the middle", flush=True)
        time.sleep(60)
    if sys.argv[2] == "slow":
        task.tokenizer.save = slow
    task.save(sys.argv[1], overwrite=True)
"""


def saving(folder, mode, **options):
    command = [sys.executable, "-c", textwrap.dedent(SAVE), str(folder), mode]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_kill_in_the_middle_of_saving_leaves_the_old_model(task, tmp_path):
    import keras_llm

    folder = tmp_path / "model"
    task.save(folder)
    expected = task("The", 8, temperature=0.0)
    process = saving(folder, "slow")
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path) == [".model.partial.lock", "model", "model.partial"]
    assert keras_llm.load(folder)("The", 8, temperature=0.0) == expected
    task.save(folder, overwrite=True)  # what the killed process left is no obstacle
    assert names(tmp_path) == ["model"]
    assert keras_llm.load(folder)("The", 8, temperature=0.0) == expected


def test_a_full_disk_leaves_the_old_model(task, tmp_path):
    import keras_llm

    folder = tmp_path / "model"
    task.save(folder)
    expected = task("The", 8, temperature=0.0)

    def small_disk():
        # Writing past this size fails as a full disk does, with an OSError.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = saving(folder, "fast", preexec_fn=small_disk)
    _, errors = process.communicate()
    assert process.returncode == 1 and "OSError" in errors
    assert names(tmp_path) == ["model"]
    assert keras_llm.load(folder)("The", 8, temperature=0.0) == expected


def test_without_an_atomic_exchange_the_old_folder_is_set_aside(tmp_path, monkeypatch):
    import keras_llm.files

    monkeypatch.setattr(keras_llm.files, "_exchange", lambda first, second: False)
    test_an_existing_folder_is_refused_or_replaced(tmp_path)
    assert os.listdir(tmp_path) == ["model"]
