"""Test the code generation recipe on a few files of the standard library."""

import ast
import json

import pytest

import keras_llm
from keras_llm import cli, tokenizers
from keras_llm.errors import InputError
from keras_llm.recipes import code_generation
from keras_llm.recipes.common import code_evaluation
from keras_llm.recipes.corpora import registry

pytestmark = pytest.mark.usefixtures("one_layer")


@pytest.fixture(scope="module")
def files():
    return [text for text in registry.load("python-stdlib") if 4000 < len(text) < 9000][:40]


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    records = [json.dumps({"text": text}) for text in [*files, files[0] + "\n# almost the same\n"]]
    (folder / "files.jsonl").write_text("\n".join(records), "utf-8")
    options = code_generation.Options(
        out=str(folder / "run"), data=str(folder / "files.jsonl"), smoke=True, held_out=0.2
    )
    return folder / "run", code_generation.run(options)


def test_model_beats_unigram_on_held_out_code(run):
    folder, metrics = run
    held_out = metrics["held_out"]
    assert held_out["tokens"] == metrics["trigram"]["tokens"] > 3000
    assert held_out["bits_per_byte"] < 0.95 * metrics["unigram"]["bits_per_byte"]
    assert metrics["trigram"]["bits_per_byte"] < metrics["unigram"]["bits_per_byte"]
    assert (
        0 <= held_out["parses"] <= 1
        and held_out["infilled_exactly"] <= held_out["infilled_line"] <= 1
    )
    assert metrics["training"]["dropped"] == {"nearly repeated": 1}
    card = (folder / "README.md").read_text()
    for name in ("trigram", "unigram", "held_out"):
        assert f"{metrics[name]['bits_per_byte']:.4f}" in card
    assert "1 nearly repeated" in card and "runs of 13 words" in card and "not run" in card


def test_evaluate_reproduces_held_out_metrics(run, loaded_once):
    folder, metrics = run
    found = code_generation.evaluate(folder)
    assert found["bits_per_byte"] == pytest.approx(metrics["held_out"]["bits_per_byte"], rel=1e-4)
    assert found["parses"] == metrics["held_out"]["parses"]


def test_infill_in_python_and_on_the_command_line(run, capfd, loaded_once):
    task = keras_llm.load(run[0])
    text = task.infill("import os\n", "\nimport sys\n", 12)
    assert isinstance(text, str) and "fim" not in text
    command = ["generate", str(run[0]), "import os\n", "--suffix", "\nimport sys\n", "--json"]
    assert cli.main([*command, "--max-new-tokens", "12", "--temperature", "0"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == text
    assert cli.main([*command, "--stream"]) == 2 and "--suffix" in capfd.readouterr().err
    with pytest.raises(InputError, match="not both empty"):
        task.infill("", "")
    plain = tokenizers.BytePair.train(["some text"], 270)
    with pytest.raises(InputError, match="fim_prefix"):
        keras_llm.TextGeneration(task.model, plain).infill("a", "b")


def test_function_beginnings_end_before_the_body(files):
    starts = code_evaluation.beginnings(files, 30, 600, seed=1)
    assert len(starts) == 30 and starts == code_evaluation.beginnings(files, 30, 600, seed=1)
    for head, rest in starts:
        (function,) = ast.parse(head + rest).body
        assert isinstance(function, ast.FunctionDef)
        assert code_evaluation.body_of(rest + "x = 1\n    y") == rest
        assert not code_evaluation.parses(head) or ast.get_docstring(function)
        assert any(head + rest in text for text in files)
    assert code_evaluation.body_of("    a = 1\n    b = (") == "    a = 1\n"


def test_removed_line_and_its_context_occur_in_the_file(files):
    tok = tokenizers.BytePair.train(files, 600, "llama3", tokenizers.INFILLING_TOKENS)
    asked = code_evaluation.gaps(files, tok, 50, room=90, seed=2)
    assert len(asked) == 50
    for prefix, line, suffix in asked:
        assert any(prefix + line + suffix in text for text in files)
        assert line.count("\n") == 1 and prefix.endswith("\n") and suffix
        assert len(tok.encode(prefix)) + len(tok.encode(suffix)) <= 90
    known = [prefix + line for prefix, line, _ in asked]
    assert code_evaluation.usual_lines(known, asked) > 0.7
    assert code_evaluation.usual_lines(["nothing\nlike it\n"], asked) == 0


class Solver:
    """A task that solves one problem; every second text ends too early."""

    class model:
        class config:
            max_length = 128

    class tokenizer:
        @staticmethod
        def encode_prompt(text):
            return list(text)

    def __call__(self, prompts, seed, **settings):
        return ["    return x + 1\nprint(1)" if s % 2 else "    return x + 1" for s in seed]


def test_pass_rates_of_executed_programs():
    test = "def check(f):\n    assert f(1) == 2\n"
    problems = [
        {"prompt": "def up(x):\n", "test": test, "entry_point": "up"},
        {"prompt": "def up(x):\n", "test": test.replace("2", "3"), "entry_point": "up"},
        {"prompt": "# " + "long " * 50, "test": test, "entry_point": "up"},
    ]
    found = code_evaluation.pass_rates(Solver(), problems, samples=4, length=20, seed=0)
    assert found == {"problems": 3, "too_long": 1, "pass@1": 0.5 / 3, "pass@4": 1 / 3}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"infill_rate": 1.5}, "infill-rate"),
        ({"samples": 0}, "samples"),
        ({"problems": 165}, "problems"),
        ({"gaps": 0}, "gaps"),
        ({"near_duplicates": 2.0}, "near-duplicates"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        code_generation.Options(out="runs/none", **changes)
