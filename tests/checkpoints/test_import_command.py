"""Test the command `keras-llm import`."""

import json

import numpy as np
import pytest

import keras_llm
from keras_llm import cli, models, tokenizers
from keras_llm.checkpoints import to_hugging_face


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tok = tokenizers.BytePair.train(["once upon a time, there was a fox"] * 5, 270)
    config = models.preset("llama-tiny", vocabulary_size=tok.vocabulary_size)
    task = keras_llm.TextGeneration(models.causal_lm(config), tok, {"chat_template": "x"})
    folder = tmp_path_factory.mktemp("checkpoints") / "llama"
    to_hugging_face(task, folder)
    return folder, task


def test_import_hugging_face_folder(source, tmp_path, capfd):
    folder, task = source
    out = tmp_path / "imported"
    assert cli.main(["import", "hugging_face", str(folder), "--out", str(out)]) == 0
    shown = capfd.readouterr().out
    assert "TextGeneration" in shown and f"{task.model.count_params():,}" in shown
    assert f"keras-llm generate {out}" in shown
    loaded = keras_llm.load(out)
    assert loaded.metadata["chat_template"] == "x"
    for first, second in zip(loaded.model.weights, task.model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))

    arguments = ["import", "hugging_face", str(folder), "--out", str(out), "--json"]
    assert cli.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "--overwrite" in captured.err
    assert cli.main([*arguments, "--overwrite"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["task"] == "TextGeneration" and report["chat_template"] is True
    assert report["parameters"] == task.model.count_params()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gguf", "nothing.gguf"], "nothing.gguf"),
        (["hugging_face", "nothing"], "nothing/config.json"),
        (["onnx", "nothing"], "onnx"),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_code_2(arguments, message, tmp_path, capfd):
    assert cli.main(["import", *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert not (tmp_path / "out").exists()
