"""Test the text generation recipe and the demo on a little real text."""

import dataclasses
import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import cli, interrupts, models, training
from keras_llm.errors import InputError
from keras_llm.recipes import demo, text_generation
from keras_llm.recipes.common import corpus, runs

pytestmark = pytest.mark.usefixtures("one_layer")
SHORT = {"max_megabytes": 0.05, "checkpoint_steps": 3, "epochs": 2}


def options(text_folder, out, **changes):
    return text_generation.Options(
        out=str(out), data=str(text_folder), smoke=True, prompt="The", **changes
    )


@pytest.fixture(scope="module")
def whole(text_folder, tmp_path_factory):
    """Return the folder of a short uninterrupted run."""
    out = tmp_path_factory.mktemp("short") / "whole"
    text_generation.run(options(text_folder, out, **SHORT))
    return out


def test_folder_contents(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "logs",
        "loss.png",
        "metrics.json",
        "model.weights.h5",
        "tokenizer",
    }
    assert {path.name for path in (run_folder / "logs").iterdir()} == {"train", "validation"}
    assert [path.name for path in run_folder.parent.iterdir()] == [run_folder.name]


def test_model_beats_unigram(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    held_out, unigram = metrics["held_out"], metrics["unigram"]
    assert held_out["tokens"] == unigram["tokens"] > 5000
    assert held_out["perplexity"] < 0.7 * unigram["perplexity"]
    assert held_out["bits_per_byte"] < unigram["bits_per_byte"]


def test_model_card_contains_the_metrics(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    card = (run_folder / "README.md").read_text()
    assert f"{metrics['held_out']['perplexity']:.4f}" in card
    assert f"{metrics['unigram']['perplexity']:.4f}" in card
    assert f"{metrics['training']['parameters']:,}" in card


def test_evaluate_reproduces_held_out_metrics(run_folder, tmp_path, loaded_once):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert text_generation.evaluate(run_folder) == pytest.approx(metrics["held_out"])
    (tmp_path / "other.txt").write_text("Something else.\n\nAnd more of it.")
    other = text_generation.evaluate(run_folder, str(tmp_path / "other.txt"))
    assert other["tokens"] < 50 and other != metrics["held_out"]


def test_existing_folder_raises_and_stays_unchanged(run_folder, text_folder):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    with pytest.raises(InputError, match="exists"):
        text_generation.run(options(text_folder, run_folder))
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_megabytes": 0.0}, "max-megabytes"),
        ({"held_out": 1.0}, "held-out"),
        ({"batch_size": 0}, "batch-size"),
        ({"learning_rate": -1.0}, "learning-rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"prompt": ""}, "prompt"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        dataclasses.replace(text_generation.Options(out="runs/none"), **changes)


def test_invalid_text_leaves_no_files(tmp_path):
    for name, content, words in (
        ("empty.txt", b"", "no text"),
        ("latin.txt", "é".encode("latin-1") * 9, "not UTF-8"),
        ("one.txt", b"one document", "2 distinct"),
        ("short.txt", b"one\n\ntwo", "3 tokens, too few for one batch"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            text_generation.run(options(tmp_path / name, tmp_path / "out" / "run"))
        assert not (tmp_path / "out").exists()


def test_muon_updates_only_block_matrices():
    settings = text_generation.Options(out="runs/none", weight_decay=0.25)
    model = models.causal_lm(models.preset("llama-tiny", tie_embeddings=False, num_layers=1))
    muon = runs.optimizer(settings, 10)
    muon.build(model.trainable_variables)
    paths = [variable.path for variable in model.trainable_variables]
    by_adam = {p for p, v in zip(paths, muon.adam_velocities, strict=True) if v is not None}
    assert {p for p in paths if not p.endswith("kernel")} <= by_adam
    left = set(paths) - by_adam
    assert left == {p for p in paths if p.startswith("block") and p.endswith("kernel")}
    assert muon.weight_decay == muon.adam_weight_decay == 0.25
    adamw = runs.optimizer(dataclasses.replace(settings, optimizer="adamw"), 10)
    assert type(adamw) is training.AdamW and adamw.weight_decay == 0.25


def test_window_longer_than_the_preset_raises(text_folder, tmp_path):
    settings = dataclasses.replace(options(text_folder, tmp_path / "run"), smoke=False)
    settings.sequence_length = 4096
    with pytest.raises(InputError, match="sequence-length"):
        text_generation.run(settings)


def test_non_finite_loss_raises_and_leaves_no_files(text_folder, tmp_path):
    settings = options(text_folder, tmp_path / "run", learning_rate=1e30, max_megabytes=0.05)
    with pytest.raises(InputError, match=r"not finite.*learning rate"):
        text_generation.run(settings)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_best_weights(whole, text_folder, tmp_path, monkeypatch, capfd):
    """The seed differs from that of `whole`, so the weights differ too.

    `test_resumed_run_gives_the_same_model` tests that the same seed gives the same weights.
    """
    text, trained = "The word and the other", {}

    def full(task, folder):
        trained["score"], trained["weights"] = task.score(text), task.model.get_weights()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keras_llm.TextGeneration, "write", full)
    with pytest.raises(OSError, match="No space"):
        text_generation.run(options(text_folder, tmp_path / "run", seed=8, **SHORT))
    best = tmp_path / "run.partial" / "best.weights.h5"
    assert best.is_file() and str(best) in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    task = keras_llm.load(whole)
    first, weights = task.score(text), task.model.get_weights()
    task.model.load_weights(best)
    rows = zip(weights, task.model.get_weights(), trained["weights"], strict=True)
    for other, kept, ours in rows:
        np.testing.assert_array_equal(kept, ours)
        assert kept.ndim < 2 or np.abs(kept - other).max() > 1e-3
    assert trained["score"] != pytest.approx(first, rel=1e-3)


def test_interruption_keeps_the_best_weights(text_folder, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = ["train", "text_generation", "--smoke", "--data", str(text_folder)]
    arguments += ["--out", str(out), "--epochs", "500", "--max-megabytes", "0.05"]
    command = [sys.executable, "-m", "keras_llm", *arguments]
    # A shell that runs the tests in the background has them, and so this, ignore Ctrl-C.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    best = tmp_path / "run.partial" / "best.weights.h5"
    while not best.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2 and str(best) in told and "interrupted" in told, told
    assert best.is_file() and not out.exists()
    capfd.readouterr()
    assert cli.main(arguments) == 2
    told = capfd.readouterr().err
    assert "unfinished run" in told and "--resume" in told
    assert best.is_file()


class Interrupted:
    """An object whose finalizer is interrupted, which Python reports as a warning."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_swallowed_interruption_stops_training(text_folder, tmp_path, monkeypatch):
    save = training.BestWeights.on_epoch_end

    def save_and_lose(callback, epoch, logs=None):
        save(callback, epoch, logs)
        Interrupted()

    monkeypatch.setattr(training.BestWeights, "on_epoch_end", save_and_lose)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.noted() as seen, pytest.raises(KeyboardInterrupt):
            text_generation.run(
                options(text_folder, tmp_path / "run", epochs=9, max_megabytes=0.05)
            )
        assert seen == [], "forgotten when all is done"
    finally:
        signal.signal(signal.SIGINT, usual)
    assert (tmp_path / "run.partial" / "best.weights.h5").is_file()
    assert not (tmp_path / "run").exists()


def test_interruption_inside_compiled_code(capfd):
    def interrupted_inside():
        tf.py_function(lambda: os.kill(os.getpid(), signal.SIGINT), [], [])

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = cli._guarded(interrupted_inside)
    finally:
        signal.signal(signal.SIGINT, usual)
    told = capfd.readouterr().err
    assert code == 2 and told.endswith("keras-llm: interrupted\n"), told


def test_resumed_run_gives_the_same_model(whole, text_folder, tmp_path, monkeypatch):
    """The evaluation after half of the training raises MemoryError once."""
    out, save = tmp_path / "stopped", training.BestWeights.on_epoch_end

    def fail(callback, epoch, logs=None):
        if epoch == 2:
            raise MemoryError
        save(callback, epoch, logs)

    monkeypatch.setattr(training.BestWeights, "on_epoch_end", fail)
    with pytest.raises(MemoryError):
        text_generation.run(options(text_folder, out, **SHORT))
    monkeypatch.setattr(training.BestWeights, "on_epoch_end", save)
    with pytest.raises(InputError, match=r"options\.seed=0.*1"):
        text_generation.run(options(text_folder, out, resume=True, seed=1, **SHORT))
    text_generation.run(options(text_folder, out, resume=True, **SHORT))
    one_go, stopped = (keras_llm.load(path).model for path in (whole, out))
    for one, other in zip(one_go.weights, stopped.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for folder in (whole, out):
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        assert not (folder / "checkpoints").exists()


def test_demo_gives_the_same_text_in_all_formats(text_folder, tmp_path, capsys):
    found = demo.run(demo.Options(folder=str(tmp_path), data=str(text_folder), smoke=True))
    assert len(found["texts"]) == 3
    for row in found["texts"]:
        assert row["keras"] == row["saved_model"] == row["litert"]
    assert found["metrics"]["held_out"]["perplexity"] < found["metrics"]["unigram"]["perplexity"]
    (row,) = found["own"]["texts"]
    assert row["keras"] == row["saved_model"] == row["litert"] == row["litert_lm"]
    assert found["own"]["losses"][-1] < found["own"]["losses"][0]
    printed = capsys.readouterr().out
    assert printed.count("the same\n") == 4 and "keras-llm generate" in printed
    for name in ("runs/demo", "serving/demo/1", "mobile/demo.tflite", "mobile/demo_int8.tflite"):
        assert (tmp_path / name).exists()


def test_recipe_with_streaming(text_folder, tmp_path):
    options = text_generation.Options(
        str(tmp_path / "run"), data=str(text_folder), stream=True, smoke=True, max_megabytes=0.06
    )
    metrics = text_generation.run(options)
    assert metrics["held_out"]["perplexity"] < metrics["unigram"]["perplexity"]
    assert "The corpus was streamed" in (tmp_path / "run" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    train, held_out, report = corpus.prepared(dataclasses.replace(options, stream=False))
    assert metrics["training"]["documents"] == len(train)
    assert metrics["training"]["held_out_documents"] == len(held_out)
    assert metrics["training"]["dropped"] == report["dropped"]
    assert text_generation.evaluate(tmp_path / "run") == pytest.approx(metrics["held_out"])
