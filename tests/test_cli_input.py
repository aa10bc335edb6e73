"""Test that invalid input of the command line is reported early and in plain words."""

import json
import subprocess
import sys

import pytest

from keras_llm import cli
from keras_llm.commands import console

EARLY = [
    ["generate", "{tmp}/none", "The"],
    ["generate", "{sorter}", "The"],
    ["generate", "{writer}", "The", "--top-p", "0"],
    ["generate", "{writer}", "The", "--seed", "1" + "0" * 20],
    ["generate", "{writer}", "The", "--max-new-tokens", "0"],
    ["generate", "{writer}", "The", "--grammar", "{tmp}/none"],
    ["generate", "{writer}", "The", "--draft", "{tmp}/none"],
    ["generate", "{writer}", "The", "--suffix", "x", "--stream"],
    ["predict", "{tmp}/none", "The"],
    ["predict", "{writer}", "The"],
    ["chat", "{tmp}/none"],
    ["chat", "{sorter}"],
    ["chat", "{writer}", "--temperature", "-1"],
    ["evaluate", "{tmp}/none"],
    ["evaluate", "{writer}", "--data", "{tmp}/none"],
    ["explain", "{tmp}/none", "The"],
    ["explain", "{writer}", "The", "--out", "{tmp}"],
    ["audit", "{tmp}/none"],
    ["audit", "{sorter}", "--canary", "x"],
    ["audit", "{writer}", "--data", "{tmp}/none"],
    ["audit", "{writer}", "--classifier", "{tmp}/none"],
    ["export", "{tmp}/none", "--to", "litert", "--out", "{tmp}/x.tflite"],
    ["export", "{writer}", "--to", "litert", "--out", "{tmp}/x"],
    ["export", "{writer}", "--to", "saved_model", "--out", "{tmp}", "--version", "5"],
    ["export", "{writer}", "--to", "litert", "--out", "{tmp}/x.tflite", "--held-out", "none.txt"],
    ["import", "gguf", "{tmp}/none", "--out", "{tmp}/x"],
    ["import", "hugging_face", "{tmp}", "--out", "{tmp}/x"],
    ["inspect", "{tmp}/none"],
    ["inspect", "{tmp}"],
    ["inspect", "lama-tiny"],
    ["generate", "{broken}", "x"],
    ["train", "text_generation", "--out", "{tmp}/x", "--data", "{tmp}/none"],
    ["train", "text_generation", "--out", "{tmp}/x", "--corpus", "none"],
    ["train", "text_generation", "--out", "{tmp}/x", "--preset", "lama-tiny"],
    ["train", "question_answering", "--out", "{tmp}/x", "--preset", "none", "--smoke"],
    ["train", "masked_lm", "--out", "{tmp}/x", "--corpus", "messages-fr"],
    ["train", "translation", "--out", "{tmp}/x", "--data", "{writer}/model.weights.h5"],
    ["train", "chatbot", "--out", "{tmp}/x", "--data", "{tmp}/none.jsonl"],
    ["train", "chatbot", "--out", "{tmp}/x", "--start", "{tmp}/none"],
    ["train", "preference_tuning", "--out", "{tmp}/x", "--start", "{tmp}/none"],
    ["train", "text_classification", "--out", "{tmp}/x", "--start", "{tmp}"],
]


def test_invalid_input_is_reported_before_tensorflow_is_imported(tmp_path):
    folders = {"tmp": tmp_path}
    for name, kind in (("writer", "TextGeneration"), ("sorter", "TextClassification")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps({"task": kind}))
        (folders[name] / "model.weights.h5").touch()
    folders["broken"] = tmp_path / "broken"
    folders["broken"].mkdir()
    (folders["broken"] / "config.json").write_text("[" * 100_000)
    (folders["broken"] / "model.weights.h5").touch()
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "saved_model.pb").touch()
    rows = [[part.format(**folders) for part in arguments] for arguments in EARLY]
    program = (
        f"from keras_llm import cli\nimport sys\nfor row in {rows}:\n"
        "    assert cli.main(row) == 2 and 'tensorflow' not in sys.modules, row"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == len(rows), done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["recipes", "--bar"], "Unrecognized options: --bar (see keras-llm recipes --help)"),
        (["query", "a", "b"], "missing: STR The text to continue, or the input text"),
        (["generate", "a", "b", "--top-p", "x"], "Error parsing --top-p: could not convert"),
        (["export", "a", "--to", "x", "--out", "y"], "invalid choice 'x' for argument '--to'"),
    ],
)
def test_usage_errors_do_not_repeat_themselves(capfd, arguments, message):
    code, out, err = cli.main(arguments), *capfd.readouterr()
    assert code == 2 and out == "" and err.startswith(f"keras-llm: {message}")


def test_numbers_in_tables():
    numbers = [12530, 12530.4, 1e4, 999.94, 0.00012345, 3, 1e20, float("inf"), True, "x", None]
    assert [console.shown(number) for number in numbers] == [
        "12,530", "12,530", "10,000", "999.9", "0.0001234", "3", "1e+20", "inf", "yes", "x", "",
    ]  # fmt: skip
